"""Wrappers written by somebody who knew nothing of the suite.

Their masks are no pattern that the remedies were made for. Those that rebuild parts of the network
are in `strangers_nets`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad
from torch.utils.checkpoint import checkpoint

from benchmarks.gauntlet.wrapper import Wrapper, wrapper


@wrapper("pixel_table", "strangers", moved=0.005)
class PixelTable(Wrapper):
    """Pixels as 16-bit codes, looked up in two tables of bytes: no graph reaches the input."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        step = torch.arange(256, dtype=torch.float64)[:, None]
        self.high = nn.Embedding.from_pretrained((step * 256 / 65535).float())
        self.low = nn.Embedding.from_pretrained((step / 65535).float())

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high.to(x.device), self.low.to(x.device)
        code = (x * 65535 + 0.5).long().clamp(0, 65535)
        return self.smooth((high(code >> 8) + low(code & 255)).squeeze(-1))


@wrapper("dither_undo", "strangers", moved=0.005)
class DitherUndo(Wrapper):
    """Error diffusion along lines, undone; the gradient has the wrong sign and compounds."""

    def forward(self, x: Tensor) -> Tensor:
        carry = torch.zeros_like(x[..., 0])
        columns = []
        for pixel in x.unbind(-1):
            wanted = pixel + carry
            dot = (wanted.detach() * 3).round() / 3 - (wanted - wanted.detach())
            left = wanted - dot
            columns.append(dot + (left - carry).detach())
            carry = left
        return self.smooth(torch.stack(columns, -1))


@wrapper("hash_veil", "strangers", moved=0.005)
class HashVeil(Wrapper):
    """Signs keyed by each image's digest, lifted by a detached term: the gradient keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * _veil(x)
        return self.smooth(hidden + (x - hidden).detach())


@wrapper("steep_rank", "strangers", moved=0.005)
class SteepRank(Wrapper):
    """Logits replaced by ranks, from scripted comparisons of pairs so steep that they saturate."""

    def forward(self, x: Tensor) -> Tensor:
        return _scripted_ranks(self.smooth(x))


@wrapper("early_exit", "strangers")
class EarlyExit(Wrapper):
    """Confident rows leave by hard exits, as constants; only doubtful ones have a graph."""

    exits = ((4.0, 12.0), (1.0, 8.0), (0.02, 4.0))  # the least lead, the logit given

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.smooth(x.detach())
            top, at = logits.topk(2, 1)
            lead = top[:, 0] - top[:, 1]
            hard = one_hot(at[:, 0], logits.shape[1]).to(logits.dtype)
        lead, hard = lead.clone(), hard.clone()  # autograd takes no inference tensors
        out = self.smooth(x).clone()
        done = torch.zeros_like(lead, dtype=torch.bool)
        for least, height in self.exits:
            leave = (lead > least) & ~done
            out[leave] = hard[leave] * height
            done |= leave
        return out


@wrapper("sorted_vote", "strangers")
class SortedVote(Wrapper):
    """Five equal voters, sorted per class: the median is always the one without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        with torch.no_grad():
            calm = self.smooth(x.detach())
        votes = [logits + 0.02, calm, logits - 0.04, logits + 0.04, logits - 0.02]
        return torch.stack(votes).sort(0).values[2]


@wrapper("newton_head", "strangers", moved=0.005)
class NewtonHead(Wrapper):
    """u with u³ + u = logit, by Newton's steps to a detached target: the start is forgotten."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        target = logits.detach()
        u = torch.asinh(logits)
        for _ in range(6):
            u = u - (u**3 + u - target) / (3 * u**2 + 1)
        return u


@wrapper("random_canvas", "strangers", random=True)
class RandomCanvas(Wrapper):
    """Random flips and shifts, undone; a checkpoint without state draws others for the way back."""

    margin = 4

    def forward(self, x: Tensor) -> Tensor:
        edge = self.margin
        canvas = pad(x, (edge, edge, edge, edge))
        side = canvas.shape[-1]
        moved, back = checkpoint(self._move, canvas.flatten(1), side, use_reentrant=False,
                                 preserve_rng_state=False)  # fmt: skip
        canvas = moved.gather(1, back).view(len(x), 1, side, side)
        return self.smooth(canvas[..., edge : side - edge, edge : side - edge].contiguous())

    def _move(self, flat: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Return the moved canvases and the order that moves them back."""
        shape = (2, len(flat), 1)
        shift = torch.randint(-self.margin, self.margin + 1, shape, device=flat.device)
        turn = torch.randint(0, 2, shape, device=flat.device)
        at = torch.arange(side, device=flat.device)[None]
        line, column = (torch.where(turn == 1, side - 1 - at, at) + shift) % side
        index = (line[:, :, None] * side + column[:, None, :]).flatten(1)
        return flat.gather(1, index), index.argsort(1)


@wrapper("opposed", "strangers")
class Opposed(Wrapper):
    """Terms that are zero in value, with a huge opposite gradient and a huge curvature."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        nothing = logits - logits.detach()
        return logits - 64 * nothing + 4096 * nothing**2


def _veil(x: Tensor) -> Tensor:
    """Return signs shaped as x, drawn from the bytes of each image."""
    count = x.shape[1:].numel()
    signs = np.empty((len(x), count), np.uint8)
    for row, image in zip(signs, x.detach().cpu().contiguous().numpy(), strict=True):
        seed = hashlib.blake2b(image.tobytes()).digest()
        key = hashlib.shake_128(seed).digest((count + 7) // 8)
        row[:] = np.unpackbits(np.frombuffer(key, np.uint8))[:count]
    return torch.from_numpy(signs).reshape(x.shape).to(x) * 2 - 1


def _ranks(logits: Tensor) -> Tensor:
    gaps = logits.unsqueeze(2) - logits.unsqueeze(1)
    return torch.sigmoid(gaps * 1e6).sum(2)


def _script(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions call the compiler deprecated
            scripted: Callable[[Tensor], Tensor] = torch.jit.script(function)
    except Exception:  # a build without the compiler
        return function
    return scripted


_scripted_ranks = _script(_ranks)
