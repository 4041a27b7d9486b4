"""Coefficients of convolutional units: only the window that a unit sees, not the whole image.

A unit at position (i, j) of a grid depends on the window of an earlier node that begins at
(i · stride + start). Its coefficients outside are zero and are not stored (Xu et al. 2020,
arXiv:2002.12920, call these patches). Windows may reach over the edge of the map, into the padding
of convolutions: what stands there counts as zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.affine import ConvOp

_DENSE_PAYS = 2  # one matrix product beats a transposed convolution up to this many more products

_MATRIX = 512  # rows of such a matrix at most: it has to be made first


@dataclass(frozen=True)
class Patches:
    """Rows of coefficients of a node of shape [c, h, w].

    The s rows of a group belong to units of one point at one position, so that they see the same
    window and whatever is known of it is read once for all of them.

    Attributes:
        values: [g, s, c, kh, kw].
        point: the point of each group [g].
        place: position of each group's units in the grid, counted along its rows [g].
        grid: height and width of the map that the units come from.
        stride: of the window, in positions of the node, for one position of the grid.
        start: of the window of position (0, 0): negative in the padding.
        shape: of the node [c, h, w].
        clean: coefficients outside the map are zero already.
        matrices: of convolutions between windows, kept for further rows.
    """

    values: Tensor
    point: Tensor
    place: Tensor
    grid: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]
    shape: tuple[int, int, int]
    clean: bool
    matrices: dict[tuple[int, ...], Tensor]

    @property
    def covers(self) -> bool:
        """Whether a window is more than half as large as the map, so that it saves nothing."""
        return 2 * self.values.shape[3] * self.values.shape[4] >= self.shape[1] * self.shape[2]

    def _margins(self) -> tuple[int, int, int, int]:
        """Return how far windows reach beyond the map: left, right, top, bottom."""
        ends = [
            max(0, (n - 1) * step + start + size - whole)
            for n, step, start, size, whole in zip(
                self.grid, self.stride, self.start, self.values.shape[3:], self.shape[1:],
                strict=True,
            )
        ]  # fmt: skip
        y, x = (max(0, -start) for start in self.start)
        return x, ends[1], y, ends[0]

    def windows(self, maps: Tensor) -> Tensor:
        """Return what each group sees of `maps` [b or 1, c, h, w]: [g, c, kh, kw]."""
        left, _, top, _ = margins = self._margins()
        padded = F.pad(maps, margins) if any(margins) else maps.contiguous()
        (kh, kw), (ny, nx), (sy, sx) = self.values.shape[3:], self.grid, self.stride
        b, c = padded.shape[:2]
        tall, wide = padded.stride(2), padded.stride(3)
        origin = (self.start[0] + top) * tall + (self.start[1] + left) * wide
        views = padded.as_strided(
            (b, ny, nx, c, kh, kw),
            (padded.stride(0), sy * tall, sx * wide, padded.stride(1), tall, wide),
            padded.storage_offset() + origin,
        )
        point = self.point if b > 1 else torch.zeros_like(self.point)
        return views[point, self.place // nx, self.place % nx]

    def cleaned(self) -> Patches:
        """Set what stands in the padding to zero."""
        if self.clean or not any(self._margins()):
            return self
        inside = self.values.new_ones(1, 1, *self.shape[1:])
        return replace(self, values=self.values * self.windows(inside)[:, None], clean=True)

    def pull(self, op: ConvOp) -> Patches:
        """A W of a convolution: the coefficients of its input, in a larger window."""
        rows, layer = self.cleaned().values, op.layer
        g, s, c, kh, kw = rows.shape
        size = [
            (k - 1) * step + apart * (width - 1) + 1
            for k, step, apart, width in zip(
                (kh, kw), layer.stride, layer.dilation, layer.kernel_size, strict=True
            )
        ]
        whole = c * kh * kw * op.shape[0] * size[0] * size[1]
        pays = whole <= _DENSE_PAYS * layer.weight.numel() * kh * kw or op.shape[0] <= 3
        if pays and c * kh * kw <= _MATRIX:
            key = (id(layer), kh, kw)
            if key not in self.matrices:
                eye = torch.eye(c * kh * kw, dtype=rows.dtype, device=rows.device)
                eye = eye.view(-1, c, kh, kw)
                self.matrices[key] = op.transposed(eye, (0, 0), size).flatten(1).contiguous()
            values = rows.flatten(2).flatten(0, 1) @ self.matrices[key]
        else:
            values = op.transposed(rows.flatten(0, 1), (0, 0), size)
        steps, pads = layer.stride, [int(pad) for pad in layer.padding]
        return replace(
            self,
            values=values.view(g, s, op.shape[0], size[0], size[1]),
            stride=(self.stride[0] * steps[0], self.stride[1] * steps[1]),
            start=(self.start[0] * steps[0] - pads[0], self.start[1] * steps[1] - pads[1]),
            shape=(op.shape[0], op.shape[1], op.shape[2]),
            clean=False,
        )

    def dense(self) -> Tensor:
        """Return the coefficients of the whole node [g, s, c, h, w]."""
        left, right, top, bottom = self._margins()
        (c, h, w), (g, s, _, kh, kw) = self.shape, self.values.shape
        tall, wide = h + top + bottom, w + left + right
        y = self.place // self.grid[1] * self.stride[0] + self.start[0] + top
        x = self.place % self.grid[1] * self.stride[1] + self.start[1] + left
        steps = torch.arange(kh, device=y.device)[:, None] * wide + torch.arange(
            kw, device=y.device
        )
        index = (y * wide + x)[:, None] + steps.flatten()
        out = self.values.new_zeros(g, s, c, tall * wide)
        out = out.scatter(3, index[:, None, None].expand(-1, s, c, -1), self.values.flatten(3))
        return out.view(g, s, c, tall, wide)[..., top : top + h, left : left + w]

    def plus(self, other: Patches) -> Patches | Tensor:
        """Add the coefficients that another path brings to the same node."""
        if self.stride != other.stride or self.grid != other.grid:
            return self.dense() + other.dense()
        one, two = self.cleaned(), other.cleaned()
        start = (min(self.start[0], other.start[0]), min(self.start[1], other.start[1]))
        size = [
            max(p.start[axis] + p.values.shape[3 + axis] for p in (one, two)) - start[axis]
            for axis in (0, 1)
        ]

        def widened(p: Patches) -> Tensor:
            top, left = p.start[0] - start[0], p.start[1] - start[1]
            kh, kw = p.values.shape[3:]
            return F.pad(p.values, (left, size[1] - left - kw, top, size[0] - top - kh))

        return replace(one, values=widened(one) + widened(two), start=start)


def one_hot(
    channels: Tensor,
    point: Tensor,
    place: Tensor,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    matrices: dict[tuple[int, ...], Tensor],
) -> Patches:
    """Return rows that pick `channels` [g, s] of a node, at `place` [g] of `point` [g]."""
    c, h, w = shape
    values = F.one_hot(channels, c).to(dtype)[..., None, None]
    return Patches(values, point, place, (h, w), (1, 1), (0, 0), shape, True, matrices)
