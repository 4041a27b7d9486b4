"""When a search gives up: by closed forms of progress, and in runs of any batch size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, subset
from robustkit.evaluation.evaluate import evaluate
from robustkit.search.patience import GRANTED, hopeless
from robustkit.search.protocol import Reply
from robustkit.search.tasks import SlotState

BALL = Threat("linf", 0.1)


def ends(near: Any, count: int, *, patience: int = 16, inside: bool = True) -> list[list[int]]:
    """Return for every slot the queries at which it would end; `near(q)` tells its nearness [s].

    Inside the ball nearness is the margin; outside, eps less the distance of what fools the model.
    """
    first = near(1)
    x = torch.full((len(first), 2), 0.5)
    slots, y = SlotState.open(x), torch.zeros(len(first), dtype=torch.long)
    search = SimpleNamespace(patience=patience, stays_inside=inside)
    tasks, running = SimpleNamespace(x=x, y=y), y == 0
    found: list[list[int]] = [[] for _ in first]
    for query in range(1, count + 1):
        value = near(query)
        margin = value if inside else torch.where(value.isfinite(), 1.0, -1.0)
        logits = torch.stack([torch.zeros_like(margin), margin], 1)
        where = x + (BALL.eps - value.nan_to_num(neginf=0.0))[:, None]
        reply = Reply(logits, margin, torch.empty(0))
        state = SimpleNamespace(query=where)
        over = hopeless(search, state, reply, tasks, slots, BALL, running)  # type: ignore[arg-type]
        for slot in over.nonzero().flatten().tolist():
            found[slot].append(query)
    return found


def test_progress_that_reaches_success_in_time_is_not_cut_short() -> None:
    # −1 at the first look, 16 queries, and a constant gain per doubling: success after so many.
    needed = torch.tensor([1 + GRANTED - 0.1, 1 + GRANTED + 0.1, 30.0])
    found = ends(lambda q: -1 + (torch.tensor(float(q)) / 16).log2() / needed, 100)
    assert found[0] == []
    assert found[1][0] == 32 and found[2][0] == 32
    # What is missing after one doubling is weighed against that one alone.
    assert ends(lambda q: torch.tensor([-1.0 if q < 20 else -0.79]), 40) == [[]]
    assert ends(lambda q: torch.tensor([-1.0 if q < 20 else -0.81]), 40) == [[32]]


def test_a_run_that_stands_still_ends_at_its_second_look() -> None:
    still = ends(lambda _: torch.tensor([-1.0, 0.5]), 70, patience=20)
    assert still == [[64], []]  # powers of two from `patience` on; a success is never given up
    # The way from the start to the first look is not its progress.
    assert ends(lambda q: torch.tensor([-9.0 if q < 8 else -1.0]), 40) == [[32]]


def test_outside_the_ball_the_distance_of_what_fools_the_model_counts() -> None:
    # Nothing that fools the model: no end. Found at once and never nearer: the second look.
    never = -torch.inf
    found = ends(lambda q: torch.tensor([never, -0.3, -0.3 * 0.5 ** (q / 4)]), 32, inside=False)
    assert found == [[], [32], []]


def test_what_gives_up_does_not_depend_on_the_batch(
    hardened: nn.Module, bundled: Dataset, tmp_path: Path
) -> None:
    data = subset(bundled, range(0, 1000, 100))
    line = ["spsa(pairs=5, patience=32, steps=30)", "rays(patience=32, queries=300)"]
    one, many = (
        evaluate(hardened, name="net", data=data, threat=BALL, attacks=line, device="cpu",
                 batch_size=size, folder=tmp_path / str(size))
        for size in (3, 64)
    )  # fmt: skip
    assert one.outcomes == many.outcomes and one.forwards == many.forwards
    for stage in one.stages:  # some gave up
        assert stage.forwards < 200 * (stage.entered - stage.broken)
    assert "unused_budget" not in {flag.name for flag in one.flags}
