"""Masks that transform: kernels that move at random, and images whose variants vote."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, pad

from benchmarks.masks.mask import Mask, Masked, mask, mean_probability, one_hot_vote, straight
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.models.architectures import small_cnn
from robustkit.models.training import Step


class MovedConv(nn.Module):
    """A convolution each of whose taps moves by up to a pixel, at random at every pass.

    A tap between pixels reads them bilinearly: the kernel is spread over a larger grid.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, d, h', w']."""
        taps = self.conv.kernel_size[0] * self.conv.kernel_size[1]
        return self.moved(x, 2 * torch.rand(taps, 2, device=x.device) - 1)

    def moved(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Convolve with taps moved by `offsets` [taps, 2], in pixels, at most 1."""
        conv = self.conv
        spread = conv2d(x, self.kernel(offsets), conv.bias, conv.stride,
                        tuple(int(p) + 1 for p in conv.padding))  # fmt: skip
        return spread

    def kernel(self, offsets: Tensor) -> Tensor:
        """Return the weights on the larger grid [d, c, k + 2, k + 2]."""
        high, wide = self.conv.kernel_size
        total = self.conv.weight.new_zeros(*self.conv.weight.shape[:2], high + 2, wide + 2)
        for tap, (row, column) in enumerate(product(range(high), range(wide))):
            # Distances to the three places in each direction; the nearer two share the weight.
            down, across = (1 - (offsets[tap, i] - _PLACES.to(offsets)).abs() for i in (0, 1))
            share = down.clamp_min(0)[:, None] * across.clamp_min(0)
            patch = self.conv.weight[:, :, row, column][..., None, None] * share
            total = total + pad(patch, (column, wide - 1 - column, row, high - 1 - row))
        return total


_PLACES = torch.tensor([-1.0, 0.0, 1.0])


class MovingNet(Masked):
    """A network whose first convolution moves."""

    offsets: Tensor

    def __init__(self, net: nn.Module, offsets: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("offsets", offsets)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.net(x)
        return logits

    def experts(self) -> dict[str, Model]:
        """The mean probability over many draws, always the same ones."""
        return {"mean": self._mean}

    def _mean(self, x: Tensor) -> Tensor:
        logits = list[Tensor]()
        for drawn in self.offsets:
            hidden = x
            for layer in self.net.children():
                if isinstance(layer, MovedConv):
                    hidden = layer.moved(hidden, drawn)
                else:
                    hidden = layer(hidden)
            logits.append(hidden)
        return mean_probability(torch.stack(logits))


@mask("random_deformation", "random offsets of Dai et al. 2017, arXiv:1703.06211", random=True)
@dataclass(frozen=True)
class RandomDeformation(Mask):
    """The first convolution's taps move at random at every pass; adversarially trained so."""

    draws: int = 16

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The small CNN with a moving first convolution."""
        layers = list(small_cnn(shape, classes, self.width).children())
        first = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
        conv = layers[first]
        assert isinstance(conv, nn.Conv2d)
        layers[first] = MovedConv(conv)
        return nn.Sequential(*layers)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Adversarial training, each pass with a draw of its own."""
        with torch.random.fork_rng(devices=[]):  # draws are a function of the step
            torch.manual_seed(int(torch.randint(2**31, (), generator=step.generator)))
            return self.adversarial.objective(model, x, y, step)

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> MovingNet:
        """Wear nothing: the network is the mask."""
        assert learned is not None
        moving = next(layer for layer in learned.children() if isinstance(layer, MovedConv))
        taps = moving.conv.kernel_size[0] * moving.conv.kernel_size[1]
        drawn = torch.Generator().manual_seed(0)
        return MovingNet(learned, 2 * torch.rand(self.draws, taps, 2, generator=drawn) - 1)


class VotingNet(Masked):
    """The votes of one classifier on seven variants of an image."""

    def __init__(self, bare: nn.Module, levels: int) -> None:
        super().__init__()
        self.bare, self.levels = bare, levels

    def variants(self, x: Tensor, *, smooth: bool = False) -> list[Tensor]:
        """Return the image coarsened, blurred, shifted, turned and enlarged [b, c, h, w] each.

        Args:
            smooth: coarsening has the gradient of the identity.
        """
        coarse = (x * self.levels).round() / self.levels
        coarse = straight(coarse, x) if smooth else coarse
        blurred = avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        shifted = [pad(x, (1, -1, 1, -1)), pad(x, (-1, 1, -1, 1))]
        turned = [_turn(x, angle, 1.0) for angle in (0.1, -0.1)]
        return [coarse, (x + blurred) / 2, *shifted, *turned, _turn(x, 0.0, 0.95)]

    def ballots(self, x: Tensor, *, smooth: bool = False) -> Tensor:
        """[b, c, h, w] -> the logits of every variant [v, b, k]."""
        logits: Tensor = self.bare(torch.cat(self.variants(x, smooth=smooth)))
        return logits.reshape(-1, len(x), logits.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> shares of votes [b, k]."""
        return one_hot_vote(self.ballots(x))

    def experts(self) -> dict[str, Model]:
        """The mean probability over the variants; the bare model."""
        return {"mean": lambda x: mean_probability(self.ballots(x, smooth=True)), "bare": self.bare}


def _turn(x: Tensor, angle: float, scale: float) -> Tensor:
    """Rotate images by an angle in radians, and scale the grid that they are read at."""
    turn = torch.tensor(angle)
    rows = torch.stack(
        [torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])]
    )
    matrix = torch.cat([scale * rows, torch.zeros(2, 1)], 1).expand(len(x), 2, 3).to(x)
    grid = affine_grid(matrix, list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


@mask("transformation_vote", "Guo et al. 2018, arXiv:1711.00117; Raff et al. 2019", learns=False)
@dataclass(frozen=True)
class TransformationVote(Mask):
    """Seven transformations of the image, each classified by the bare model; the majority decides.

    Differs from the papers: the transformations are always the same.
    """

    levels: int = 7

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> VotingNet:
        """Put the transformations before the bare model."""
        return VotingNet(bare, self.levels)
