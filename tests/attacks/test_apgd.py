"""APGD against the reference implementation: step by step, and by its verdicts on a real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.functional import attack
from robustkit.search.protocol import Job, Reply, Search, Tasks
from robustkit.search.tasks import fresh_tasks

REFERENCE = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    """A random network without kinks, five classes; float64, so that rounding decides nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        last = nn.Linear(24, 5)
        last.weight.data *= 6
        layers = [nn.Flatten(), nn.Linear(108, 24), nn.Tanh(), last]
        return nn.Sequential(*layers).double().requires_grad_(False).eval()


def queries(search: Search[Any], model: nn.Module, tasks: Tasks, threat: Threat) -> Tensor:
    """Where the search evaluates the model [q, b, *f]; it is not stopped by success."""
    state, queried = search.start(tasks, threat), []
    while not bool(state.done.any()):
        query = state.query.clone().requires_grad_()
        queried.append(query.detach())
        logits = model(query)
        value = search.objective(logits, state)
        (gradient,) = torch.autograd.grad(value.sum(), query)
        state = search.step(state, Reply(logits.detach(), value.detach(), gradient), threat)
    assert bool(state.done.all())
    return torch.stack(queried)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted_dlr"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.3), ("l1", 2.0)])
def test_both_take_the_same_steps(
    norm: Norm, eps: float, loss: str, smooth: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started at the same points, both query the same points, through every checkpoint.

    Two accidents of the reference are taken out: its first window compares the first value with 0
    instead of the value at the start, and it counts residues of rounding as changed coordinates.
    """
    base = pytest.importorskip("pyautoattack.autopgd_base")
    steps, threat = 60, Threat(norm, eps)
    draw = torch.Generator().manual_seed(1)
    # Away from the faces of the box, where in l2 the reference clips and we project.
    x = 0.3 + 0.4 * torch.rand(12, 3, 6, 6, generator=draw, dtype=torch.float64)
    y = smooth(x).argmax(1)
    options = f"loss={loss}, steps={steps}"
    spec = f"apgd_l1({options}, shrink=false)" if norm == "l1" else f"apgd({options})"
    search, ranked = attacks.build(spec), smooth(x).argsort(1, descending=True)
    tasks = fresh_tasks(x, y, ranked, torch.arange(12), [Job(2)] * 12, "test", 0)
    ours = queries(search, smooth, tasks, threat)
    assert len(ours) == steps + 1

    queried: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        queried.append(z.detach().clone())
        logits: Tensor = smooth(z)
        return logits

    given = {"norm": REFERENCE[norm], "n_iter": steps, "eps": eps, "device": "cpu"}
    if loss == "targeted_dlr":
        reference = base.APGDAttack_targeted(model, **given)
        reference.y_target = ranked[:, 2]
    else:
        reference = base.APGDAttack(model, loss=loss, **given)
    start = search.objective(smooth(ours[0]), tasks)
    check = base.APGDAttack.check_oscillation

    def check_oscillation(
        self: Any, values: Tensor, last: int, k: int, *rest: Any, **kw: Any
    ) -> Any:
        if last == k - 1:
            values = torch.cat([values[:-1], start[None]])
        return check(self, values, last, k, *rest, **kw)

    monkeypatch.setattr(base.APGDAttack, "check_oscillation", check_oscillation)
    monkeypatch.setattr(base, "L0_norm", lambda delta: (delta.abs() > 1e-7).flatten(1).sum(1))
    reference.init_hyperparam(x)
    reference.attack_single_run(x, y, x_init=ours[0].clone())
    theirs = torch.stack(queried)
    assert theirs.shape == ours.shape
    # Every projection of ours ends 1e-6 of eps inside the ball.
    assert float((theirs - ours).abs().max()) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "eps", "loss"),
    [
        ("linf", 0.1, "ce"),
        ("linf", 0.1, "targeted_dlr"),
        ("l2", 1.0, "ce"),
        ("l2", 1.0, "targeted_dlr"),
        ("l1", 8.0, "ce"),
    ],
)
def test_both_give_the_same_verdicts(
    norm: Norm, eps: float, loss: str, hardened: nn.Module, bundled: Dataset
) -> None:
    """Random starts differ: one alone may break a point near the boundary, net two of 100."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    x, y = bundled.fetch(range(0, 1000, 10))
    steps, threat = 30, Threat(norm, eps)
    name, targets = "apgd_l1" if norm == "l1" else "apgd", 3
    z = attack(
        hardened,
        x,
        y,
        attacks.build(f"{name}(loss={loss}, steps={steps}, targets={targets})"),
        threat,
    )
    given = {
        "norm": REFERENCE[norm], "n_iter": steps, "eps": eps, "device": "cpu",
        "use_largereps": norm == "l1",
    }  # fmt: skip
    if loss == "ce":
        reference = base.APGDAttack(hardened, loss="ce", **given)
    else:
        reference = base.APGDAttack_targeted(hardened, n_target_classes=targets, **given)
    theirs = reference.perturb(x.clone(), y.clone())
    clean, ours_stand, theirs_stand = (hardened(images).argmax(1) == y for images in (x, z, theirs))
    assert 20 < int(theirs_stand.sum()) < int(clean.sum()) - 10
    assert bool(threat.contains(z, x).all())
    assert abs(int(ours_stand.sum()) - int(theirs_stand.sum())) <= 2
    assert int((ours_stand != theirs_stand).sum()) <= 4


@pytest.mark.slow
def test_more_steps_and_restarts_find_no_less(hardened: nn.Module, bundled: Dataset) -> None:
    x, y = bundled.fetch(range(0, 1000, 20))
    threat = Threat("linf", 0.08)

    def survivors(spec: str) -> set[int]:
        z = attack(hardened, x, y, attacks.build(spec), threat)
        return set((hardened(z).argmax(1) == y).nonzero().flatten().tolist())

    short, again = survivors("apgd(steps=4)"), survivors("apgd(steps=4, restarts=3)")
    assert again <= short
    assert len(survivors("apgd(steps=40)")) <= len(short)


@pytest.mark.parametrize(
    ("name", "norm", "sentence"),
    [
        ("apgd", "l1", "apgd supports linf and l2, got l1. Use apgd_l1."),
        ("apgd_l1", "linf", "apgd_l1 supports l1, got linf. Use apgd."),
        ("apgd_l1", "l2", "apgd_l1 supports l1, got l2. Use apgd."),
    ],
)
def test_each_sends_to_the_other(name: str, norm: Norm, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        attacks.build(name).jobs(Threat(norm, 0.1), 10)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["apgd", "apgd_l1"])
def test_jobs_are_targets_times_restarts(name: str) -> None:
    threat = Threat("l1" if name == "apgd_l1" else "linf", 0.1)
    aimed = attacks.build(f"{name}(loss=targeted_dlr, targets=3, restarts=2)")
    assert aimed.jobs(threat, 10) == [Job(r, k) for r in (1, 2, 3) for k in (0, 1)]
    assert aimed.jobs(threat, 3) == [Job(r, k) for r in (1, 2) for k in (0, 1)]
    assert aimed.jobs(threat, 2) == [Job(1, 0), Job(1, 1)]
    free = attacks.build(f"{name}(restarts=3)")
    assert free.jobs(threat, 10) == [Job(0, 0), Job(0, 1), Job(0, 2)]
    assert len({job.key(name) for job in aimed.jobs(threat, 10)}) == 6
