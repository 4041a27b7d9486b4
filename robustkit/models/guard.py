"""A guard around every pass of a model: it keeps the model's hands off what is not its own.

A pass may write into its input, return a buffer that the next pass overwrites, leave the folder,
switch gradients off, or seed the generators that attacks draw from. None of it may reach the
evaluation. The guard hangs on the module as two hooks, so that its weights, names and surrogates
stay what they are; a plain function is wrapped.

Inputs are cast and answers read as logits here too (`robustkit.models.precision`, `outputs`).

What costs little is done at every pass: settings of the process are put back, the answer is copied,
and the version counter of the input is compared. Whether the input must be copied, or generators
kept, is seen at the first look, where inputs are compared in full (`watching`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.core import import_folders, process_state
from robustkit.core.process_state import ProcessState
from robustkit.core.types import Model
from robustkit.errors import RobustkitError
from robustkit.models.outputs import Reading, read
from robustkit.models.precision import needs_cast, weights_type

_LOCKS = (type(threading.Lock()), type(threading.RLock()))


class Habits(NamedTuple):
    """What a model does beside answering, as the first look saw it.

    Attributes:
        alters: it writes into its input, so that it gets a copy.
        seeds: the generators that it seeds, which are put back after every pass.
        changes: settings of the process that it changes.
    """

    alters: bool = False
    seeds: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


class _Pass(NamedTuple):
    """What is remembered while a pass runs: the input, what the model got, and what it held."""

    given: Tensor
    own: Tensor
    kept: Tensor | None
    version: int
    tracked: bool
    state: ProcessState
    random: dict[str, Any]


class Guard:
    """The hooks of one model, and how its last answer was read; its copies share it."""

    def __init__(self, folder: Path | None) -> None:
        self.habits, self._folder = Habits(), folder
        self.reading = Reading()
        self.casts: bool | None = None  # to the type of the weights; the first pass tells
        self._local = threading.local()
        self._watched: list[tuple[dict[str, Any], dict[str, Any]]] | None = None

    def __deepcopy__(self, _: object) -> Guard:
        return self

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key != "_local"}
        return {**kept, "_watched": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    @property
    def _passes(self) -> list[_Pass]:
        """The passes that this thread is in, from the outermost on."""
        found: list[_Pass] | None = getattr(self._local, "passes", None)
        if found is None:
            found = self._local.passes = []
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What the record says of inputs and answers."""
        cast = ("inputs are cast to the precision of the weights",) if self.casts else ()
        return cast + self.reading.notes

    def before(self, model: object, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Remember the state before a pass, and hand over a copy where the model needs one."""
        if not inputs or not isinstance(inputs[0], Tensor):
            return None
        given = inputs[0]
        if self.casts is None:
            self.casts = needs_cast(model, given)
        copied, watched = self.habits.alters, self._watched is not None
        own = given.clone() if copied else given
        if self.casts and (kind := weights_type(model)) is not None and kind != own.dtype:
            own, copied = own.to(kind), True
        if not torch.compiler.is_compiling():
            if self._folder is not None:
                import_folders.activate(self._folder)
            kept = given.detach().clone() if watched and not copied else None
            drawn = process_state.generators() if self.habits.seeds or watched else {}
            version = 0 if own.is_inference() else own._version
            about = (given, own, kept, version, own.requires_grad)
            self._passes.append(_Pass(*about, process_state.read(), drawn))
        return (own, *inputs[1:]) if copied else None

    def after(self, _: object, __: object, answer: Any) -> Any:
        """Put back what the pass has changed, and return a copy of the answer, read as logits.

        Raises:
            RobustkitError: when the pass wrote into an input that was not copied, or did not
                answer every input.
        """
        if torch.compiler.is_compiling():
            return self.reading.of(answer)
        if not self._passes:
            return answer
        done = self._passes.pop()
        changed = process_state.put_back(done.state)
        if self._watched is not None:
            self._learn(done, changed)
        elif self.habits.seeds:
            now = {key: done.random[key] for key in self.habits.seeds if key in done.random}
            process_state.set_generators(now)
        if done.own.requires_grad and not done.tracked and done.own.is_leaf:
            done.own.requires_grad_(False).grad = None  # the model differentiates by itself
        if self._watched is None and done.own is done.given and _altered(done):
            raise RobustkitError(
                "the model wrote into its input in the middle of the run, which it had not done "
                "when it was looked at; what follows would be judged on other inputs. Begin its "
                "forward pass with `x = x.clone()`."
            )
        if answer is not None:  # else the pass has failed
            answer, self.reading = read(answer, len(done.given))
        if not isinstance(answer, Tensor):
            return answer
        if self._watched is None and (not answer.ndim or len(answer) != len(done.given)):
            raise RobustkitError(
                f"the model returned {list(answer.shape)} for {len(done.given)} inputs in the "
                "middle of the run; expected one row of logits per input, in batches of any size."
            )
        return answer.clone()

    def _learn(self, done: _Pass, changed: list[str]) -> None:
        now = process_state.generators()
        watched = self._watched if self._watched is not None else []
        watched.append((done.random, now))
        # A generator that stood differently before two passes and alike after both was seeded.
        seeded = {
            key
            for before, after in watched[:-1]
            for key in now
            if key in before
            and key in done.random
            and not process_state.same(before[key], done.random[key])
            and process_state.same(after[key], now[key])
        }
        del watched[:-8]
        altered = done.kept is not None and not _equal(done.kept, done.given)
        if done.kept is not None and altered:
            done.given.data.resize_(done.kept.shape).copy_(done.kept)
        self.habits = Habits(
            self.habits.alters or altered or _altered(done),
            tuple(sorted({*self.habits.seeds, *seeded})),
            tuple(sorted({*self.habits.changes, *changed})),
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, look closely at every pass, and learn the model's habits."""
        self._watched = []
        try:
            yield
        finally:
            self._watched = None


class GuardedFunction:
    """A plain function behind its guard."""

    def __init__(self, function: Model, guard: Guard) -> None:
        self.function, self.guard = function, guard

    def __call__(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        given = self.guard.before(None, (x,))
        answer = None
        try:
            answer = self.function(x if given is None else given[0])
        finally:
            told: Tensor = self.guard.after(None, None, answer)
        return told

    def __getattr__(self, name: str) -> Any:
        """Surrogates and other attributes are those of the function."""
        if name in ("function", "guard") or (name.startswith("__") and name != "__name__"):
            raise AttributeError(name)  # while it is unpickled, or how it is copied
        return getattr(self.function, name)


def guarded(model: Model) -> Model:
    """Hang a guard on a module, in place, or return a plain function behind one."""
    if guard_of(model) is not None:
        return model
    guard = Guard(_folder(model))
    if not isinstance(model, nn.Module):
        return GuardedFunction(model, guard)
    _hang(model, guard)
    return model


def guard_of(model: Any) -> Guard | None:
    """Return the guard of a model, if it has one."""
    if isinstance(model, GuardedFunction):
        return model.guard
    if not isinstance(model, nn.Module):
        return None
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Guard)), None)


@contextmanager
def watching(model: Any) -> Iterator[None]:
    """Inside, look closely at every pass of a model that has a guard."""
    guard = guard_of(model)
    with guard.watching() if guard is not None else nullcontext():
        yield


def habits(model: Any, known: Habits | None = None) -> Habits:
    """Return the habits of a guarded model; `known` ones, of a look at a copy of it, are set."""
    guard = guard_of(model)
    if guard is None:
        return Habits()
    if known is not None:
        guard.habits = known
    return guard.habits


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy under the same guard: scripted and traced modules copy no hooks."""
    with torch.no_grad():  # the copied weights of a scripted module would have a history
        made = copy.deepcopy(model, _copied_here(model))
    guard = guard_of(model)
    if guard is not None and guard_of(made) is None:
        _hang(made, guard)
    return made


def _copied_here(model: nn.Module) -> dict[int, Any]:
    """Return copies of what `deepcopy` refuses: derived tensors (of hooks, caches), and locks."""
    made: dict[int, Any] = {}
    for layer in model.modules():
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                made[id(value)] = value.detach().clone()
            elif isinstance(value, _LOCKS):
                made[id(value)] = (
                    threading.Lock() if isinstance(value, _LOCKS[0]) else threading.RLock()
                )
    return made


def _hang(model: nn.Module, guard: Guard) -> None:
    model.register_forward_pre_hook(guard.before)
    model.register_forward_hook(guard.after, always_call=True)


def _altered(done: _Pass) -> bool:
    """Whether the pass wrote into what it was given, by the version counter."""
    return not done.own.is_inference() and done.own._version != done.version


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach(), b.detach())


def _folder(model: Any) -> Path | None:
    """Return the folder of a user's file that the model, or a part of it, comes from."""
    parts = model.modules() if isinstance(model, nn.Module) else [model]
    for part in parts:
        # Scripted modules have no forward of their class.
        code = getattr(type(part), "forward", None) if isinstance(part, nn.Module) else part
        if (found := import_folders.folder_of(code)) is not None:
            return found
    return None
