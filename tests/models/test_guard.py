"""What a model does beside answering does not reach the evaluation: inputs, buffers, settings."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.core import process_state
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError
from robustkit.models.guard import duplicate, guard_of, guarded, habits, watching
from robustkit.models.readiness import private_copy
from robustkit.record.record import Record

CPU = torch.device("cpu")


class Around(nn.Module):
    """A model with something done before the pass, and something to its answer."""

    def __init__(
        self,
        inner: nn.Module,
        before: Callable[[Tensor], object] = lambda x: None,
        after: Callable[[Tensor], Tensor] = lambda y: y,
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        self.before(x)
        return self.after(self.inner(x))


class Shifted(nn.Module):
    """The model behind a shift of its input by one half, out of place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        answer: Tensor = self.inner(x + 0.5)
        return answer


class Buffered(nn.Module):
    """A model that answers every pass into the same buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.buffer = inner, torch.empty(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        answer: Tensor = self.inner(x)
        if torch.is_grad_enabled():
            return answer
        return self.buffer[: len(x)].copy_(answer)


def run(model: Model, data: Dataset, folder: Path) -> Record:
    return robustkit.evaluate(
        model, data=data, threat="linf:0.1", folder=folder, attacks=["apgd(steps=3)"], n=20
    )


def verdicts(record: Record) -> list[Any]:
    return [record.points.status, record.points.predicted, record.points.distance]


def names(record: Record) -> set[str]:
    return {found.name for found in record.flags}


def in_place(x: Tensor) -> None:
    x.add_(0.5)


def behind_the_counter(x: Tensor) -> None:
    x.data.add_(0.5)


def through_numpy(x: Tensor) -> None:
    x.detach().numpy()[...] += 0.5


class TestInputs:
    @pytest.mark.parametrize("write", [in_place, behind_the_counter, through_numpy])
    def test_a_model_that_writes_into_its_input_is_evaluated_as_its_function(
        self, write: Callable[[Tensor], object], nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        told = run(Around(nearest, write), blobs, tmp_path / "a")
        wanted = run(Shifted(nearest), blobs, tmp_path / "b")
        assert verdicts(told) == verdicts(wanted)
        assert "alters_inputs" in names(told)
        assert "alters_inputs" not in names(wanted)

    def test_so_is_a_plain_function(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        def function(x: Tensor) -> Tensor:
            answer: Tensor = nearest(x.add_(0.5))
            return answer

        told = run(function, blobs, tmp_path / "a")
        wanted = run(lambda x: nearest(x + 0.5), blobs, tmp_path / "b")
        assert verdicts(told) == verdicts(wanted)
        assert "alters_inputs" in names(told)

    @pytest.mark.parametrize("writes", [False, True])
    def test_copies_are_made_for_those_models_alone(self, writes: bool, nearest: nn.Module) -> None:
        seen: list[int] = []

        def before(x: Tensor) -> None:
            seen.append(x.data_ptr())
            if writes:
                x.add_(0.5)

        model, x = guarded(Around(nearest, before)), torch.rand(3, 1, 6, 6)
        held = x.clone()
        with watching(model):
            model(x)
        model(x)
        assert [place == x.data_ptr() for place in seen] == [True, not writes]
        assert torch.equal(x, held)

    def test_writing_that_begins_in_the_middle_of_a_run_is_an_error(
        self, nearest: nn.Module
    ) -> None:
        model = guarded(Around(nearest, in_place))
        with pytest.raises(RobustkitError, match=r"wrote into its input .* `x = x.clone\(\)`"):
            model(torch.rand(3, 1, 6, 6))

    def test_asking_for_gradients_by_itself_leaves_the_input_as_it_was(
        self, nearest: nn.Module
    ) -> None:
        model, x = (
            guarded(Around(nearest, lambda x: x.requires_grad_(True))),
            torch.rand(2, 1, 6, 6),
        )
        model(x)
        assert not x.requires_grad

    def test_rows_that_vanish_in_the_middle_of_a_run_are_an_error(self, nearest: nn.Module) -> None:
        model = guarded(Around(nearest, after=lambda y: y[:2]))
        with pytest.raises(RobustkitError, match=r"returned \[2, 4\] for 3 inputs"):
            model(torch.rand(3, 1, 6, 6))


def test_an_answer_in_a_reused_buffer_is_copied(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    told = run(Buffered(nearest), blobs, tmp_path / "a")
    assert verdicts(told) == verdicts(run(nearest, blobs, tmp_path / "b"))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    with process_state.kept():
        yield process_state.read()


CHANGES: dict[str, Callable[[], object]] = {
    "folder": lambda: os.chdir("/"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "gradients": lambda: torch.set_grad_enabled(False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "device": lambda: torch.set_default_device("meta"),
}


class TestSettings:
    @pytest.mark.parametrize("which", CHANGES)
    @pytest.mark.parametrize("plain", [False, True])
    def test_are_put_back_after_a_pass(
        self, which: str, plain: bool, nearest: nn.Module, settings: Any
    ) -> None:
        def after(y: Tensor) -> Tensor:
            CHANGES[which]()
            return y

        made = Around(nearest, after=after)
        model = guarded((lambda x: made(x)) if plain else made)
        with watching(model):
            model(torch.rand(2, 1, 6, 6))
        assert process_state.read() == settings
        assert len(habits(model).changes) == (which not in ("folder", "threads"))

    @pytest.mark.parametrize("which", CHANGES)
    def test_are_put_back_after_a_pass_that_fails(
        self, which: str, nearest: nn.Module, settings: Any
    ) -> None:
        def after(y: Tensor) -> Tensor:
            CHANGES[which]()
            raise ValueError("no luck today")

        with pytest.raises(ValueError, match="no luck"):
            guarded(Around(nearest, after=after))(torch.rand(2, 1, 6, 6))
        assert process_state.read() == settings

    def test_gradients_switched_off_by_a_pass_do_not_blind_the_attack(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        def after(y: Tensor) -> Tensor:
            torch.set_grad_enabled(False)
            return y

        told = run(Around(nearest, after=after), blobs, tmp_path / "a")
        assert verdicts(told) == verdicts(run(nearest, blobs, tmp_path / "b"))
        assert "process_state" in names(told)
        assert torch.is_grad_enabled()


SEEDS: dict[str, Callable[[], object]] = {
    "PyTorch": lambda: torch.manual_seed(0),
    "NumPy": lambda: np.random.seed(0),
    "Python": lambda: random.seed(0),
}
DRAWS: dict[str, Callable[[], float]] = {
    "PyTorch": lambda: float(torch.rand(())),
    "NumPy": lambda: float(np.random.rand()),
    "Python": random.random,
}


class TestGenerators:
    @pytest.mark.parametrize("library", SEEDS)
    def test_a_model_that_seeds_them_is_told_from_one_that_draws(
        self, library: str, nearest: nn.Module, settings: Any
    ) -> None:
        def before(x: Tensor) -> object:
            SEEDS[library]()
            return DRAWS[library]()

        found = {}
        for kind, does in {"seeds": before, "draws": lambda x: DRAWS[library]()}.items():
            model = guarded(Around(nearest, does))
            with watching(model):
                for _ in range(3):
                    model(torch.rand(2, 1, 6, 6))
            found[kind] = habits(model).seeds
        assert found == {"seeds": (library,), "draws": ()}

    @pytest.mark.parametrize("library", SEEDS)
    def test_an_attack_draws_on_where_the_model_seeds(
        self, library: str, nearest: nn.Module, settings: Any
    ) -> None:
        model = guarded(Around(nearest, lambda x: SEEDS[library]()))
        with watching(model):
            for _ in range(2):
                DRAWS[library]()
                model(torch.rand(2, 1, 6, 6))
        drawn = []
        for _ in range(5):
            model(torch.zeros(2, 1, 6, 6))
            drawn.append(DRAWS[library]())
        assert len(set(drawn)) == 5

    def test_a_model_that_draws_keeps_drawing(self, nearest: nn.Module, settings: Any) -> None:
        model = guarded(Around(nearest, after=lambda y: y + torch.rand_like(y)))
        x = torch.rand(2, 1, 6, 6)
        with watching(model):
            answers = [model(x) for _ in range(3)]
        assert not torch.equal(answers[0], answers[1])
        assert not torch.equal(model(x), model(x))


class TestGuard:
    def test_changes_no_weights_no_names_and_not_the_users_own_module(
        self, nearest: nn.Module
    ) -> None:
        private = private_copy(nearest, CPU, "it")
        assert isinstance(private, nn.Module)
        assert guard_of(nearest) is None
        assert not nearest._forward_hooks
        assert list(private.state_dict()) == list(nearest.state_dict())
        x = torch.rand(5, 1, 6, 6)
        assert torch.equal(private(x), nearest(x))

    def test_goes_with_copies_and_through_pickle(self, nearest: nn.Module) -> None:
        private = private_copy(nearest, CPU, "it")
        assert isinstance(private, nn.Module)
        assert guard_of(duplicate(private)) is guard_of(private)
        sent = pickle.loads(pickle.dumps(private))  # as workers are sent it
        assert guard_of(sent) is not None

    def test_goes_with_copies_of_a_traced_graph(self, nearest: nn.Module) -> None:
        private = private_copy(torch.fx.symbolic_trace(nearest), CPU, "it")
        assert isinstance(private, nn.Module)
        assert guard_of(duplicate(private)) is guard_of(private)


def test_threads_do_not_see_each_other(nearest: nn.Module) -> None:
    model = private_copy(Around(nearest, lambda _: time.sleep(0.002)), CPU, "model")
    sizes = [1, 2, 3, 5] * 10
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: len(model(torch.rand(n, 1, 6, 6))), sizes))
    assert answers == sizes
