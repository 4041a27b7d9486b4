"""Unions of threat models: the worst case per point, who broke it, proofs, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.certify.certifier import build_certifier
from robustkit.core.named import NamedThreat
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.arrays import as_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.registry import attacks, read_threat, suites
from robustkit.search.suites import line_up

LINF, L2 = 0.02, 0.08
TEXT = f"linf:{LINF}+l2:{L2}"


class Flat(nn.Module):
    """Class 1 where the sum of all pixels is large, class 2 where the first pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(36, 3)
        with torch.no_grad():
            self.line.weight.zero_()
            self.line.weight[1], self.line.weight[2, 0] = 1.0, 1.0
            self.line.bias[:] = torch.tensor([0.0, -18.0, -0.5])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.line(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    """Well inside the box, all of class 0, at all distances from the two borders."""
    draw = torch.Generator().manual_seed(0)
    x = 0.45 + 0.05 * torch.rand(120, 1, 6, 6, generator=draw)
    x[:, 0, 0, 0] = 0.5 - 0.2 * torch.rand(120, generator=draw)
    total = 18 - 1.2 * torch.rand(120, generator=draw)
    x[:, :, 1:] += ((total - x.sum((1, 2, 3))) / 30)[:, None, None, None]
    return x, torch.zeros(120, dtype=torch.long)


def falls(x: Tensor, norm: str, eps: float) -> Tensor:
    """Reach of the adversary at either border: eps times the dual norm of the difference."""
    logits = Flat()(x).detach()
    dual = {"linf": (36.0, 1.0), "l2": (6.0, 1.0)}[norm]
    reached: Tensor = (logits[:, 1] + eps * dual[0] > 0) | (logits[:, 2] + eps * dual[1] > 0)
    return reached


@pytest.fixture(scope="module")
def run(
    points: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[robustkit.Record, Path]:
    folder = tmp_path_factory.mktemp("union")
    record = robustkit.evaluate(Flat(), points, TEXT, folder=folder, certify="crown")
    return record, folder


def test_the_row_is_the_worst_case_per_point(
    run: tuple[robustkit.Record, Path], points: tuple[Tensor, Tensor]
) -> None:
    record, x = run[0], points[0]
    by_linf, by_l2 = falls(x, "linf", LINF), falls(x, "l2", L2)
    assert min(int((by_linf & ~by_l2).sum()), int((by_l2 & ~by_linf).sum())) > 3
    broken = torch.tensor([status == "broken" for status in record.points.status])
    assert torch.equal(broken, by_linf | by_l2)
    # On a linear model bounds are exact: what no member breaks is proved, for every member.
    proved = torch.tensor([status == "certified" for status in record.points.status])
    assert torch.equal(proved, ~broken) and record.certified == record.robust
    assert record.threat.text == TEXT and record.threat.eps == 1 and record.suite == "union"


def test_every_success_names_the_member_that_holds_it(
    run: tuple[robustkit.Record, Path], points: tuple[Tensor, Tensor]
) -> None:
    record, folder = run
    found, x = robustkit.adversarial_inputs(folder), points[0]
    named = set()
    for point, attack, distance in zip(
        record.points.index, record.points.attack, record.points.distance, strict=True
    ):
        if attack is None or distance is None:
            continue
        member = dict(Spec.parse(attack).options)["member"]
        threat, z = Threat.parse(str(member)), found[point][None]
        assert threat.contains(z, x[point][None])
        shares = [
            float(one.distance(z, x[point][None])) / one.limit(36)
            for one in (Threat("linf", LINF), Threat("l2", L2))
        ]
        assert distance == pytest.approx(min(shares)) and distance <= 1
        named.add(member)
    assert named == {f"linf:{LINF}", f"l2:{L2}"}
    data = as_dataset("arrays", points)
    checked = verify_record(load_baselines(folder)[0], Flat(), data, sample=3)
    assert checked.holds and checked.findings[2].checked == len(found) > 0


def test_a_stopped_run_goes_on_to_the_same_verdicts(
    run: tuple[robustkit.Record, Path], points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    class Stop(robustkit.Watcher):
        left = 4

        def advance(self, done: int, robust: int, points: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    asked = {"folder": tmp_path, "certify": "crown", "batch_size": 32}
    with pytest.raises(KeyboardInterrupt):
        robustkit.evaluate(Flat(), points, TEXT, watcher=Stop(), **asked)  # type: ignore[arg-type]
    again = robustkit.evaluate(Flat(), points, TEXT, **asked)  # type: ignore[arg-type]
    assert again.points.status == run[0].points.status


def test_membership_is_that_of_any_member() -> None:
    x = torch.full((300, 1, 4, 4), 0.5)
    z = (
        x
        + (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 0.5)
        * (torch.linspace(0, 0.2, 300)[:, None, None, None])
    )
    z[::3, 0, 1:] = 0.5
    members = [read_threat(text) for text in ("linf:0.05", "l2:0.12", "patch:1x4")]
    union = read_threat("linf:0.05 + L2:0.12+patch:1x4")
    inside = torch.stack([member.contains(z, x) for member in members])
    assert torch.equal(union.contains(z, x), inside.any(0))
    assert len({tuple(row) for row in inside.T.tolist()}) >= 5
    assert not union.contains(x + 0.6, x).any()
    assert isinstance(union, NamedThreat)
    assert str(union) == "linf:0.05+l2:0.12+patch:1x4" == str(read_threat(str(union)))
    assert [str(member) for member in union.members] == list(map(str, members))


def test_a_certificate_must_hold_for_every_member(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    union = read_threat(TEXT)
    proofs = [build_certifier(Flat(), (1, 6, 6), threat, "crown")
              for threat in (union, Threat("linf", LINF), Threat("l2", L2))]  # fmt: skip
    whole, *parts = [proof.prove(x, y) for proof in proofs if proof is not None]
    assert torch.equal(whole, parts[0] & parts[1])
    assert 0 < whole.sum() < min(part.sum() for part in parts)
    assert build_certifier(Flat(), (1, 6, 6), read_threat("l2:0.1+patch:2x2"), "quick") is None
    with pytest.raises(UsageError, match=r"certificate \(--certify ibp\) needs a norm.*l0px:2"):
        build_certifier(Flat(), (1, 6, 6), read_threat("l2:0.1+l0px:2"), "ibp")
    both = build_certifier(Flat(), (1, 6, 6), read_threat("l2:0.1+patch:2x2"), "crown")
    alone = [build_certifier(Flat(), (1, 6, 6), read_threat(text), "crown")
             for text in ("l2:0.1", "patch:2x2")]  # fmt: skip
    whole, *parts = [proof.prove(x, y) for proof in (both, *alone) if proof is not None]
    assert torch.equal(whole, parts[0] & parts[1])
    with pytest.raises(UsageError, match=r"--certify complete: .*unites several.*expected one of"):
        build_certifier(Flat(), (1, 6, 6), union, "complete")


def test_an_attack_within_a_member_is_the_attack() -> None:
    built = attacks.build("within(attack='apgd(eot=3, steps=7)', member='l2:0.1')")
    assert (built.eot, built.steps, built.surrogate, built.uses_gradient) == (3, 7, "", True)
    assert copy.deepcopy(built) == built == pickle.loads(pickle.dumps(built))
    assert not attacks.build("within(attack=square)").white_box and built.white_box
    assert not hasattr(attacks.build("within(attack=square)"), "steps")


def test_the_suite_lists_those_of_the_members() -> None:
    union = read_threat("linf:0.03+patch:2x2+l0px:3")
    line = line_up("union(suite=fast)", [], union)
    told = [dict(spec.options) for spec in line.specs]
    assert [one["attack"] for one in told[:2]] == ["relay", "patch"]
    assert {one["member"] for one in told[: line.audited]} == set(str(union).split("+"))
    assert {one["member"] for one in told[line.audited :]} == {"linf:0.03"}
    assert line_up("union", [], union).audit is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("linf:0.1+linf:0.10", "two or more different threat models joined by"),
        ("linf:0.1+linf:0.1", "two or more different threat models joined by"),
        ("union:linf:0.1", "two or more different threat models joined by"),
        ("linf:0.1+corruption:fog", "corruption:fog lists its inputs: evaluate it in a run of its"),
        ("rotation:5+l2:0.1", "rotation:5 lists its inputs"),
        ("linf:0.1+l2:much", "expected a threat model such as"),
        ("patch:2x2+l0px:0", "expected l0px:10"),
    ],
)
def test_what_cannot_be_united_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_threat(text)


def test_what_does_not_fit_is_refused_and_says_what_to_do(points: tuple[Tensor, Tensor]) -> None:
    union = read_threat(TEXT)
    assert isinstance(union, NamedThreat)
    for suite, chosen in ((None, ["apgd"]), ("fast", [])):
        with pytest.raises(UsageError, match=r"unites several.*within\(attack=apgd, member='linf"):
            line_up(suite, chosen, union)
    for text, message in (
        ("within(attack=apgd, member='l1:3')", f"one of linf:{LINF}, l2:{L2}, got 'l1:3'"),
        ("within(attack='foolbox:PGD')", "searches of robustkit"),
        ("within(attack=exhaustive)", "searches of robustkit"),
        ("within(attack=sigma_zero)", "sigma_zero supports l0"),
    ):
        with pytest.raises(UsageError, match=message):
            line_up(None, [text], union)
    with pytest.raises(UsageError, match=r"within supports unions .*got linf"):
        line_up(None, ["within"], Threat("linf", 0.1))
    with pytest.raises(UsageError, match=r"the suite union supports linf:0\.03\+l2:0\.5, got l2"):
        suites.build("union").attacks(Threat("l2", 0.1))
    with pytest.raises(UsageError, match=r"does not act on what it finds.*got adaptive"):
        line_up("union(suite=adaptive)", [], union)
    with pytest.raises(UsageError, match="no larger than the images"):
        robustkit.evaluate(Flat(), points, "l2:0.1+patch:9x9")
    with pytest.raises(UsageError, match="reaches beyond the box"):
        robustkit.evaluate(Flat(), points, "l2:0.1+linf:8")
