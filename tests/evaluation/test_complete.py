"""Branch and bound in a run: after the attacks, within its budget, point by point in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.complete.points import PointVerifier, Verified
from robustkit.certify.complete.verifier import Effort
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.stages.first_look import FirstLook
from robustkit.leaderboard.rows import row
from robustkit.models.mixture import Mixed
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.record import Record

THREAT = Threat("linf", 0.08)


def net(seed: int = 0) -> nn.Module:
    """Three layers whose bounds are loose."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 3)).eval()  # fmt: skip
    with torch.no_grad():
        bias = made.get_parameter("5.bias")
        bias.sub_(made(torch.rand(256, 1, 3, 3)).mean(0))
        for weight in (made.get_parameter("1.weight"), made.get_parameter("3.weight")):
            weight.mul_(2)
    return made


@pytest.fixture
def data() -> Dataset:
    """Points with the labels that the network gives them."""
    x = torch.rand(24, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    return from_arrays("small", x.numpy(), net()(x).argmax(1).numpy(), layout="nchw")


def run(data: Dataset, folder: Path, certify: str | None, **more: Any) -> Record:
    """Evaluate with a weak attack, so that something is left to do."""
    given: dict[str, Any] = {"attacks": ["fgsm"], **more}
    return evaluate(net(), name="net", data=data, threat=THREAT, folder=folder, certify=certify,
                    **given)  # fmt: skip


def test_it_closes_the_bracket(data: Dataset, tmp_path: Path) -> None:
    """Every point ends proved or broken, some by the tree; the record says which."""
    before = run(data, tmp_path / "bounds", "crown")
    record = run(data, tmp_path / "complete", "complete(nodes=4000)")
    assert record.certify == "complete(nodes=4000)"
    assert before.undecided is not None
    assert before.undecided > 0 == record.undecided
    assert record.certified == record.robust
    by = record.points.proof
    assert by is not None
    assert {"complete", "bounds"} <= set(by)
    assert "complete" in record.points.attack  # fgsm misses what the tree finds
    assert all(
        (proof is not None) == (status == "certified")
        for proof, status in zip(by, record.points.status, strict=True)
    )
    line = row(record, "record.json")
    assert (line.undecided, line.certified) == (0.0, record.certified)
    strong = run(data, tmp_path / "apgd", None, attacks=["apgd(steps=50, restarts=5)"])
    assert strong.robust == record.robust


def test_attacks_come_first(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that an attack has broken costs no branching."""
    seen: list[int] = []
    verify = PointVerifier.verify

    def spy(self: PointVerifier, *given: Any) -> Verified:
        seen.append(1)
        return verify(self, *given)

    monkeypatch.setattr(PointVerifier, "verify", spy)
    record = run(data, tmp_path, "complete(nodes=50)")
    by = record.points.proof
    assert by is not None
    left = sum(s == "robust" for s in record.points.status) + by.count("complete")
    assert len(seen) == left + record.points.attack.count("complete")
    assert record.points.attack.count("fgsm") > 0


def test_an_interrupted_run_goes_on_with_the_points_left(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decided is not tried again, and the outcome is that of an uninterrupted run."""
    whole = run(data, tmp_path / "whole", "complete(nodes=200)")
    verify, calls = PointVerifier.verify, 0

    def stop(self: PointVerifier, *given: Any) -> Verified:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return verify(self, *given)

    monkeypatch.setattr(PointVerifier, "verify", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "again", "complete(nodes=200)")
    with open_readonly(tmp_path / "again" / "ledger.sqlite") as ledger:
        assert len(ledger.verified()) == 1
    found = run(data, tmp_path / "again", "complete(nodes=200)")
    assert found.points == whole.points
    tried = calls
    run(data, tmp_path / "again", "complete(nodes=200)")
    assert calls == tried  # finished


def test_time_that_is_over_leaves_points_undecided(data: Dataset, tmp_path: Path) -> None:
    """No error, and nothing that is not so."""
    record = run(data, tmp_path, "complete(seconds=1e-9)")
    assert record.certify == "complete(seconds=1e-09)"
    assert record.undecided is not None
    assert record.undecided > 0


def test_a_first_look_spends_a_share_of_the_time_of_the_run(data: Dataset, tmp_path: Path) -> None:
    """CROWN first, then branch and bound, the nearest to a proof first; what is open is undecided.

    No allowance leaves what interval bounds prove; an ample one ends as complete verification does.
    """
    none = run(data, tmp_path / "none", "auto(share=0.000001)")
    quick = run(data, tmp_path / "quick", "quick")
    assert none.certify == "auto(share=1e-06)"
    assert none.points.status == quick.points.status
    ample = run(data, tmp_path / "ample", "auto(share=1000000)")
    whole = run(data, tmp_path / "whole", "complete(nodes=4000)")
    assert ample.points.status == whole.points.status
    assert {"bounds", "complete"} <= set(ample.points.proof or ())


def test_a_first_look_stays_within_its_time(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No point gets more than a quarter of what is left, and after the end none is tried."""
    given: list[tuple[float, float]] = []
    budget = FirstLook.budget

    def spy(self: FirstLook, left: int) -> Any:
        found = budget(self, left)
        given.append((self._left(), 0.0 if found is None else found.seconds))
        return found

    monkeypatch.setattr(FirstLook, "budget", spy)
    run(data, tmp_path, "auto(share=0.000001)")
    assert given and all(seconds == 0 for _, seconds in given)
    given.clear()
    run(data, tmp_path, "auto(share=100)", fresh=True)
    assert len(given) > 4
    assert all(seconds <= left / 4 + 1e-3 for left, seconds in given[:-3])


def test_auto_goes_as_far_where_it_can(data: Dataset, tmp_path: Path) -> None:
    """And keeps its name where there is nothing to branch on."""
    assert run(data, tmp_path / "relu", "auto(nodes=4000)").undecided == 0
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    record = evaluate(model, name="tanh", data=data, threat=THREAT, folder=tmp_path / "tanh",
                      attacks=["fgsm"], certify="auto")  # fmt: skip
    assert record.certify == "auto"
    with pytest.raises(UsageError, match="branches on ReLUs"):
        evaluate(model, name="tanh", data=data, threat=THREAT, folder=tmp_path / "no",
                 attacks=["fgsm"], certify="complete")  # fmt: skip


def test_a_mixture_is_verified_by_its_robust_part(data: Dataset, tmp_path: Path) -> None:
    """The margin of the robust part must outweigh the standard one."""
    mixture = Mixed(net(1), net(), alpha=0.95, rob_scale=50.0)
    x, y = data.fetch(list(range(24)))
    model = mixture.eval()
    kept = [int(p) for p in (model(x).argmax(1) == y).nonzero().flatten()]
    given: dict[str, Any] = {"name": "mix", "data": data, "threat": THREAT,
                             "attacks": ["fgsm"], "points": kept}  # fmt: skip
    record = evaluate(model, folder=tmp_path / "complete", certify="complete(nodes=500)", **given)
    assert record.points.proof is not None
    assert "complete" in record.points.proof
    assert record.certified is not None
    strong = evaluate(model, folder=tmp_path / "apgd",
                      **{**given, "attacks": ["apgd(steps=50, restarts=3)"]})  # fmt: skip
    assert record.certified <= strong.robust


def test_an_unsound_proof_stops_the_run(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --attack-certified, broken points are verified too."""
    proved = Verified("proved", 0)
    monkeypatch.setattr(PointVerifier, "verify", lambda *_: proved)
    with pytest.raises(RobustkitError, match="certificate refuted"):
        run(data, tmp_path, "complete", attack_certified=True)


def test_an_input_that_breaks_nothing_is_not_believed(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counterexamples are judged like those of attacks."""

    def lie(self: PointVerifier, x: Tensor, *_: Any) -> Verified:
        return Verified("broken", 1, x.clone())

    monkeypatch.setattr(PointVerifier, "verify", lie)
    record = run(data, tmp_path, "complete")
    assert "complete" not in record.points.attack
    assert record.undecided is not None
    assert record.undecided > 0


def test_efforts() -> None:
    """A budget is read and written in one form."""
    for text, canonical in (
        ("complete", "complete(seconds=10)"),
        ("auto(nodes=100)", "auto(nodes=100)"),
        ("complete(seconds=2.5, nodes=7)", "complete(nodes=7, seconds=2.5)"),
        ("ibp", "ibp"),
        ("alpha-crown", "alpha-crown"),
    ):
        assert Effort.parse(text).text == canonical
    for wrong in ("complete(steps=3)", "auto(seconds=0)", "complete(nodes=true)"):
        with pytest.raises(UsageError, match="above zero"):
            Effort.parse(wrong)
