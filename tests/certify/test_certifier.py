"""Certificates in an evaluation: they bracket, spare the attacks, and stop the run when refuted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.certifier import Bounds, build_certifier
from robustkit.certify.sampling import Sampling
from robustkit.certify.smoothing import Smoothed
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.mixture import Mixed
from robustkit.registry import attacks
from robustkit.search.functional import attack

THREAT = Threat("linf", 0.1)


def line(scale: float = 4.0) -> nn.Module:
    """Class 1 where the first pixel exceeds 0.5."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    linear = list(net.children())[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:, 0] = torch.tensor([-scale, scale])
        linear.bias.copy_(torch.tensor([scale / 2, -scale / 2]))
    return net.eval()


@pytest.fixture
def data() -> Dataset:
    """Distances to the boundary from 0.02 to 0.4; the last two points are labeled wrongly."""
    x = torch.full((12, 1, 2, 2), 0.3)
    away = torch.linspace(0.02, 0.4, 12)
    sign = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0)
    x[:, 0, 0, 0] = 0.5 + sign * away
    y = (sign > 0).long()
    y[10:] = 1 - y[10:]
    return from_arrays("line", x.numpy(), y.numpy())


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "auto"])
def test_the_row_brackets_and_a_linear_model_is_decided(
    method: str, data: Dataset, tmp_path: Path
) -> None:
    record = evaluate(
        line(), name="line", data=data, threat=THREAT, folder=tmp_path, attacks=["apgd(steps=10)"],
        certify=method,
    )  # fmt: skip
    assert record.certify == method
    assert record.certified is not None
    assert record.certified == record.robust == 7 / 12  # farther than 0.1, and labeled rightly
    assert record.certified <= record.robust <= record.clean == 10 / 12
    assert record.stages[0].entered == 3  # certified points were not attacked


def test_certified_points_are_attacked_on_request(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(
        line(), name="line", data=data, threat=THREAT, folder=tmp_path, attacks=["apgd(steps=10)"],
        certify="ibp", attack_certified=True,
    )  # fmt: skip
    assert record.stages[0].entered == 10
    assert record.points.status.count("certified") == 7


def test_a_broken_certificate_stops_the_run(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "prove", lambda self, x, y: torch.ones(len(x), dtype=torch.bool))
    with pytest.raises(RobustkitError, match="certificate refuted") as caught:
        evaluate(
            line(), name="line", data=data, threat=THREAT, folder=tmp_path,
            attacks=["apgd(steps=10)"], certify="ibp", attack_certified=True,
        )  # fmt: skip
    assert caught.value.exit_code == 3
    assert not (tmp_path / "record.json").exists()


def test_an_interrupted_certificate_goes_on(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(
        line(), name="line", data=data, threat=THREAT, folder=tmp_path / "a",
        attacks=["apgd(steps=10)"], certify="ibp",
    )  # fmt: skip
    seen: list[int] = []
    prove = Bounds.prove

    def counted(self: Bounds, x: Tensor, y: Tensor) -> Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(x))
        return prove(self, x, y)

    monkeypatch.setattr(Bounds, "batch", 3)
    monkeypatch.setattr(Bounds, "prove", counted)
    given = {"name": "line", "data": data, "threat": THREAT, "folder": tmp_path / "b"}
    more = {"attacks": ["apgd(steps=10)"], "certify": "ibp"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(line(), **given, **more)  # type: ignore[arg-type]
    seen.clear()
    record = evaluate(line(), **given, **more)  # type: ignore[arg-type]
    assert sum(seen) == 4  # six of ten points were proved before
    assert record.points == whole.points


def test_other_certificates_make_another_run(data: Dataset, tmp_path: Path) -> None:
    given = {"name": "line", "data": data, "threat": THREAT, "folder": tmp_path}
    evaluate(line(), **given, attacks=["fgsm"], certify="ibp")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="certify"):
        evaluate(line(), **given, attacks=["fgsm"], certify="crown")  # type: ignore[arg-type]


def test_what_cannot_be_bounded_is_refused_by_name_and_skipped_by_auto() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Hardswish())
    assert build_certifier(net, (1, 2, 2), THREAT, "auto") is None
    with pytest.raises(UsageError, match=r"Hardswish"):
        build_certifier(net, (1, 2, 2), THREAT, "ibp")
    assert build_certifier(lambda x: x, (1, 2, 2), THREAT, "auto") is None
    with pytest.raises(UsageError, match="expected a certificate"):
        build_certifier(net, (1, 2, 2), THREAT, "zonotope")


@pytest.mark.parametrize("size", [5e-5, 1e-9])
def test_a_randomized_network_has_no_bounds(size: float) -> None:
    """The noise is read once, as a constant: what is bounded then is another network."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.net(x + size * torch.randn(1, 1, 2, 2).double())
            return answer

    noisy = Noisy().eval()
    assert build_certifier(noisy, (1, 2, 2), THREAT, "auto") is None
    with pytest.raises(UsageError, match="two passes over the same input differ"):
        build_certifier(noisy, (1, 2, 2), THREAT, "ibp")
    sound = noisy.net
    assert build_certifier(sound, (1, 2, 2), THREAT, "ibp") is not None
    assert build_certifier(sound, (1, 2, 2), THREAT, "auto", randomized=True) is None
    with pytest.raises(UsageError, match="two passes of this one differ"):
        build_certifier(sound, (1, 2, 2), THREAT, "crown", randomized=True)


def test_a_mixture_is_certified_by_its_robust_part(data: Dataset) -> None:
    """Whatever the other part says: here it says the contrary."""
    wrong = nn.Sequential(line(), Negated())
    mixed = Mixed(wrong, line(40.0), alpha=0.8)
    prover = build_certifier(mixed, data.shape, THREAT, "auto")
    assert prover is not None
    x, y = data.fetch(list(range(10)))
    holds = prover.prove(x, y)
    assert 3 <= int(holds.sum()) <= 7
    found = attack(mixed, x, y, attacks.build("pgd(restarts=5)"), THREAT)
    assert torch.equal(found[holds], x[holds])
    weak = build_certifier(Mixed(wrong, line(40.0), alpha=0.45), data.shape, THREAT, "auto")
    assert weak is not None
    assert not bool(weak.prove(x, y).any())


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def test_a_batch_that_one_method_decides_alone_asks_no_other(data: Dataset) -> None:
    """The cascade ends when nothing is open any more."""
    x, y = data.fetch([8, 9])  # the farthest from the boundary
    prover = build_certifier(line(), data.shape, THREAT, "auto")
    assert prover is not None
    assert prover.prove(x, y).tolist() == [True, True]


def test_a_mixture_is_certified_by_its_smoothed_part(data: Dataset) -> None:
    """The radius is that of A.4 at the share of votes that is certain, and shrinks with alpha."""
    smooth = Smoothed(line(40.0), sigma=0.1, draws=16)
    x, y = data.fetch([6, 8])  # 0.21 and 0.28 from the boundary of the base, in l2
    radii = []
    for alpha in (1.0, 0.9, 0.6):
        mixed = Mixed(line(0.1), smooth, alpha=alpha).eval()
        proofs = [
            build_certifier(mixed, data.shape, Threat("l2", eps), "smoothing")
            for eps in (0.02, 0.12, 0.3)
        ]
        assert all(isinstance(prover, Sampling) for prover in proofs)
        radii.append([prover.prove(x, y).tolist() for prover in proofs if prover])
    assert radii[0] == [[True, True], [True, True], [False, False]]
    assert radii[2][1] == [False, False]
    assert [sum(map(sum, found)) for found in radii] == sorted(
        (sum(map(sum, found)) for found in radii), reverse=True
    )


def test_scaled_votes_are_not_certified(data: Dataset) -> None:
    smooth = Smoothed(line(40.0), sigma=0.1, draws=16)
    mixed = Mixed(line(0.1), smooth, alpha=0.9, rob_scale=2.0).eval()
    prover = build_certifier(mixed, data.shape, Threat("l2", 0.01), "smoothing")
    assert prover is not None
    assert not prover.prove(*data.fetch([8])).any()


def test_quick_is_interval_bounds_or_nothing(data: Dataset) -> None:
    prover = build_certifier(line(), data.shape, THREAT, "quick")
    assert prover is not None
    assert (prover.name, prover.method) == ("ibp", "ibp")
    smooth = Smoothed(line(40.0), sigma=0.1, draws=16)
    for model in (smooth, Mixed(line(), smooth, alpha=0.9), lambda x: x):
        assert build_certifier(model, data.shape, THREAT, "quick") is None
    assert build_certifier(line(), data.shape, THREAT, "quick", randomized=True) is None
