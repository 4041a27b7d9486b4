"""The training loop of all defenses: a defense has a network, an objective and a recipe.

Every random draw is a function of (seed, step), so that a resumed run repeats an uninterrupted one
step for step. The state is written every minute and after every epoch.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from safetensors.torch import save
from torch import Generator, Tensor, nn

from robustkit.core import files, json_files
from robustkit.core.rng import generator
from robustkit.data.dataset import Dataset, digest
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.augmentation import augmented
from robustkit.models.averaging import average, look, settle
from robustkit.models.protocols import assemble, learned

_LOG = "log."


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train: linear warm-up over 5% of the steps, cosine to 0.

    Attributes:
        optimizer: AdamW, or SGD with Nesterov's momentum of 0.9.
        average: decay per step of an exponential moving average of weights and statistics, which
            is what is written in their place; 0 for none.
        validation: so many points are left out of the training, and the weights are those of the
            epoch of its second half that is best on them; 0 for the last weights.
        half: on a GPU, passes may run in bfloat16; weights and their updates stay in float32. Off
            where bounds are trained, which the rounding of bfloat16 would swamp.
    """

    epochs: int = 15
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 5.0
    half: bool = True
    optimizer: Literal["adamw", "sgd"] = "adamw"
    average: float = 0.0
    validation: int = 0


@dataclass(frozen=True)
class Step:
    """The state of the training that an objective may use.

    Attributes:
        progress: from 0 to 1.
        generator: lives on the CPU and belongs to this step alone.
        memory: tensors that an objective keeps from step to step; saved with the state. Those
            named `log.NAME` are written to `log.json` after every epoch.
        points: positions of the batch in the training data [b], where they are known.
        epoch: counted from 0.
        last: whether this is the last batch of its epoch.
    """

    progress: float
    generator: Generator
    memory: dict[str, Tensor] = field(default_factory=dict)
    points: Tensor | None = None
    epoch: int = 0
    last: bool = False


class Trainable(Protocol):
    """What `fit` needs of a defense, beside its model (see `robustkit.models.protocols`)."""

    @property
    def recipe(self) -> Recipe:
        """The schedule that the shipped weights were trained with."""
        ...

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the scalar to minimize on one batch."""
        ...


class Progress(NamedTuple):
    """One report of a running training."""

    step: int
    steps: int
    epoch: int
    loss: float


def fit(
    defense: Trainable,
    data: Dataset,
    folder: Path,
    *,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    identity: dict[str, Any],
    watch: Callable[[nn.Module], float] | None = None,
) -> Iterator[Progress]:
    """Train, yielding after every batch; the weights are written to `folder/model.safetensors`.

    Args:
        folder: holds the state; a folder with a state is resumed.
        identity: what the run is (defense, data, seed, ...); a state of another run is refused.
        watch: how good a model in evaluation mode is, asked after every epoch of the second half;
            the weights of the best epoch are kept, the first among equals.

    Raises:
        UsageError: when `folder` holds the state of a different training or of one on other data,
            or the data does not fill a batch.
        RobustkitError: when the state cannot be read or written, or the data has changed.
    """
    per_epoch = len(data) // recipe.batch_size
    if not per_epoch:
        raise UsageError(
            f"expected at least one full batch of {recipe.batch_size} points to train on, got "
            f"{len(data)} points. Choose a smaller batch size."
        )
    model = _seeded(lambda: assemble(cast(Any, defense), data), seed).to(device)
    part = learned(defense, model) or model
    optimizer = _optimizer(part, recipe)
    total, memory = recipe.epochs * per_epoch, dict[str, Tensor]()
    content = digest(data, range(len(data)))
    done = _resume(folder, defense, part, optimizer, memory, identity, content)
    saved, on_gpu = time.monotonic(), device.type == "cuda"
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(done, total):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or not len(order):
            order = torch.randperm(len(data), generator=generator(seed, 0, epoch))
        chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        x, y = data.fetch(chosen)
        draw = generator(seed, 1, step)
        x = augmented(x, data.augment, draw).to(device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _rate(step / total)
        last = position + 1 == per_epoch
        state = Step(step / total, draw, memory, chosen, epoch, last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.half and on_gpu):
            loss = defense.objective(model, x, y.to(device), state)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), recipe.clip)
        optimizer.step()
        if recipe.average:
            average(memory, part, recipe.average, step)
        if watch and last and 2 * (epoch + 1) > recipe.epochs:
            look(memory, model, part, watch)
        if step + 1 == total or last or time.monotonic() - saved > 60:
            _save(folder, part, optimizer, memory, identity, content, step + 1)
            saved = time.monotonic()
        if last:
            _log(folder, memory)
        yield Progress(step + 1, total, epoch + 1, float(loss.detach()))
    if done < total and (now := digest(data, range(len(data)))) != content:
        raise RobustkitError(
            f"{data.name} changed while the training went on: its digest was {content}, now it is "
            f"{now}. No weights were written. Put the data back, and start over with --fresh."
        )
    settle(memory, part)
    save_weights(part, folder / "model.safetensors")


def tells_its_data(folder: Path) -> bool:
    """Whether the state in `folder`, if there is one, says which data its training began with.

    Those of earlier versions do not, and are resumed all the same.
    """
    path = folder / "state.pt"
    return not path.exists() or "data" in _read(path)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    files.write(save(state), path)


def _seeded(build: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = build()
    return network


def _optimizer(part: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    usual: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(part.parameters(), momentum=0.9, nesterov=True, **usual)
    return torch.optim.AdamW(part.parameters(), **usual)


def _rate(progress: float) -> float:
    return min(progress / 0.05, 0.5 * (1 + math.cos(math.pi * progress))) if progress else 0.01


def _save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: dict[str, Tensor],
    identity: dict[str, Any],
    content: str,
    step: int,
) -> None:
    buffer = io.BytesIO()
    state = {
        "identity": identity,
        "data": content,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "memory": memory,
    }
    torch.save(state, buffer)
    files.write(buffer.getvalue(), folder / "state.pt")


def _log(folder: Path, memory: dict[str, Tensor]) -> None:
    """Write what the objective logs; it comes from the state, so that a resumed run tells all."""
    logs = {
        name.removeprefix(_LOG): value.tolist()
        for name, value in memory.items()
        if name.startswith(_LOG)
    }
    if logs:
        json_files.write(logs, folder / "log.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in many ways
        raise _unreadable(path, type(error).__name__) from error
    parts = {"identity": dict, "step": int, "model": dict, "optimizer": dict}
    held = dict(state) if isinstance(state, dict) else {}  # type: ignore[redundant-expr]
    if not all(isinstance(held.get(name), kind) for name, kind in parts.items()):
        raise _unreadable(path, f"it lacks {', '.join(parts)}")
    return state


def _unreadable(path: Path, why: str) -> RobustkitError:
    return RobustkitError(
        f"cannot read the training state {path} ({why}). Nothing was overwritten; move the file "
        "away, or start over with --fresh."
    )


def _resume(
    folder: Path,
    defense: Trainable,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: dict[str, Tensor],
    identity: dict[str, Any],
    content: str,
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = _read(path)
    # An option that the state does not know was added to the defense since: it had its default.
    held = {key: getattr(type(defense), key, None) for key in identity} | state["identity"]
    for key in sorted(held):
        was, now = held[key], identity.get(key)
        if was != now:
            raise UsageError(
                f"{folder} holds another training: {key} was {was!r}, now {now!r}. "
                "Choose another --out, or start over with --fresh."
            )
    if (was := state.get("data", content)) != content:
        raise UsageError(
            f"{folder} holds a training that began on other data: its digest was {was}, now it is "
            f"{content}. Put the data back, choose another --out, or start over with --fresh."
        )
    device = next(model.parameters()).device
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        memory.update({key: value.to(device) for key, value in state.get("memory", {}).items()})
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, f"it is of another network: {type(error).__name__}") from error
    return int(state["step"])
