"""What a wrapper is: a defense around a bare model that masks gradients and adds no robustness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from torch import Tensor, nn

Truth: TypeAlias = Literal["equal", "at most"]
FAMILIES = ("outputs", "inputs", "gradients", "randomness", "ensembles", "computation", "strangers")


class Wrapper(nn.Module):
    """A module around `bare`. One whose truth is "at most" has a method `smooth` as well.

    `smooth` is what an expert who knows the wrapper attacks in its place: the truth is found
    through it, and no evaluation is told of it.
    """

    def __init__(self, bare: nn.Module) -> None:
        super().__init__()
        self.bare = bare

    def smooth(self, x: Tensor) -> Tensor:
        """[b, *f] -> logits [b, k], with a useful gradient."""
        logits: Tensor = self.bare(x)
        return logits


@dataclass(frozen=True)
class Entry:
    """One wrapper of the gauntlet.

    Attributes:
        truth: "equal": it decides as the bare model does, so that its robust accuracy is that of
            the bare model. "at most": it moves the inputs a little; its robust accuracy is at most
            what transferred adversarial inputs and attacks through `smooth` leave.
        moved: the largest share of inputs in the ball on which it may decide otherwise than the
            bare model; a test counts them. Where it is random, its decision is the most frequent
            one over repeated draws.
        random: whether two passes over one input give different outputs or gradients.
    """

    name: str
    family: str
    build: Callable[[nn.Module], Wrapper]
    truth: Truth
    moved: float
    random: bool

    @property
    def what(self) -> str:
        """The first line of its documentation."""
        return (self.build.__doc__ or "").strip().splitlines()[0]


ENTRIES: dict[str, Entry] = {}
W = TypeVar("W", bound=type[Wrapper])


def wrapper(
    name: str, family: str, *, truth: Truth = "equal", moved: float = 0.0, random: bool = False
) -> Callable[[W], W]:
    """Enter a wrapper; see `Entry`."""

    def enter(kind: W) -> W:
        if name in ENTRIES or family not in FAMILIES:
            raise ValueError(f"{name}: entered twice, or of unknown family {family!r}")
        ENTRIES[name] = Entry(name, family, kind, truth, moved, random)
        return kind

    return enter


def split(model: nn.Module, number: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a sequential model after its `number`-th ReLU.

    Raises:
        ValueError: when it is not sequential or has fewer of them.
    """
    layers = list(model.children()) if isinstance(model, nn.Sequential) else []
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    if not -len(places) <= number < len(places):
        raise ValueError(
            f"expected a torch.nn.Sequential with more than {number} ReLU layers, got "
            f"{type(model).__name__} with {len(places)}: use --skip for wrappers of hidden layers."
        )
    cut = places[number] + 1
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])
