"""Attacks through surrogates: gradients from the surrogate, verdicts from the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.surrogates.resolve import declared, plain, source
from robustkit.models.surrogates.submodules import within
from robustkit.models.tuning import Tuning, tune
from robustkit.registry import suites
from robustkit.search.suites import line_up

THREAT = Threat("linf", 0.1)


class Rounded(nn.Module):
    """Class 1 where the first pixel exceeds 0.5, by logits without gradient."""

    def _score(self, x: Tensor) -> Tensor:
        score = 100 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-score, score], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self._score(x).round()

    def surrogates(self) -> dict[str, nn.Module]:
        return {"smooth": self._score}  # type: ignore[dict-item]


class Noisy(Rounded):
    """Rounds after noise: one gradient says little, the mean of many is right."""

    def forward(self, x: Tensor) -> Tensor:
        clean = self._score(x)
        return clean + torch.randn_like(clean)


@pytest.fixture
def data() -> Dataset:
    x = torch.full((8, 1, 2, 2), 0.3)
    x[:, 0, 0, 0] = torch.tensor([0.56, 0.44, 0.57, 0.43, 0.9, 0.1, 0.8, 0.2])
    return from_arrays("rounded", x.numpy(), (x[:, 0, 0, 0] > 0.5).long().numpy())


def test_a_surrogate_leads_where_the_model_has_no_gradient(data: Dataset, tmp_path: Path) -> None:
    found = {
        spec: evaluate(
            Rounded(), name="rounded", data=data, threat=THREAT, folder=tmp_path / str(number),
            attacks=[spec],
        ).robust
        for number, spec in enumerate(
            ["pgd(random_start=false)", "pgd(random_start=false, surrogate=smooth)"]
        )
    }  # fmt: skip
    assert list(found.values()) == [1.0, 0.5]  # true: four points lie within 0.1


def test_any_model_has_built_in_surrogates(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(
        Rounded(), name="rounded", data=data, threat=THREAT, folder=tmp_path,
        attacks=["pgd(random_start=false)", "pgd(random_start=false, surrogate=bpda)"],
    )  # fmt: skip
    assert [stage.broken for stage in record.stages] == [0, 4]


def test_built_in_surrogates_are_made_on_the_plain_model(data: Dataset) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits.round()

    model, x = Wide().eval().requires_grad_(False), data.fetch(np.arange(8))[0]
    tuned = tune(model, x, Tuning(precision="bfloat16"), randomized=True)
    assert tuned.half
    gradients = []
    for each in (tuned.model, model):
        query = x.clone().requires_grad_(True)
        answer = source(each, "bpda")(query)
        gradients.append(torch.autograd.grad(answer[:, 0].sum(), query)[0])
    torch.testing.assert_close(*gradients)
    assert set(within(plain(tuned.model))) == set(within(model)) == {"net", "net.1", "net.2"}


def test_passes_of_surrogates_and_draws_are_counted(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(
        Rounded(), name="rounded", data=data, threat=Threat("linf", 0.001), folder=tmp_path,
        attacks=["pgd(steps=4)", "pgd(steps=4, surrogate=smooth)", "pgd(eot=3, steps=4)"],
    )  # fmt: skip
    passes = [(stage.forwards, stage.backwards) for stage in record.stages]
    assert passes == [(40, 40), (80, 40), (120, 120)]


def test_quick_and_surrogates_use_what_is_declared(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(
        Rounded(), name="rounded", data=data, threat=THREAT, folder=tmp_path, suite="quick"
    )
    assert record.robust == 0.5
    assert any("surrogate=smooth" in spec for spec in record.attacks)
    specs = [str(spec) for spec in line_up("surrogates(eot=2)", (), THREAT, Rounded()).specs]
    assert sum("surrogate=smooth" in spec for spec in specs) == len(specs) / 2 == 2
    assert all("eot=2" in spec for spec in specs)
    assert not any("surrogate" in s for s in suites.build("surrogates").attacks(THREAT))


def test_unknown_surrogates_are_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"declares \(smooth\), got 'rough'"):
        evaluate(
            Rounded(), name="rounded", data=data, threat=THREAT, folder=tmp_path,
            attacks=["pgd(surrogate=rough)"],
        )  # fmt: skip
    assert declared(nn.Identity()) == {}
    with pytest.raises(UsageError, match="none"):
        source(nn.Identity(), "rough")
    assert not list(tmp_path.iterdir())


def test_expectation_over_noise_breaks_what_it_should(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(
        Noisy(), name="noisy", data=data, threat=THREAT, folder=tmp_path, suite="rand(eot=10)"
    )
    assert record.randomized
    far = [s for i, s in zip(record.points.index, record.points.status, strict=True) if i >= 4]
    near = [s for i, s in zip(record.points.index, record.points.status, strict=True) if i < 4]
    assert far == ["robust"] * 4
    assert "robust" not in near
