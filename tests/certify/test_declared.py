"""Certificates that a model declares: asked for by name, taken by default, refuted by attacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.declared import Proof
from robustkit.cli.program import program
from robustkit.cli.train.measure import measure
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.models.training import save_weights
from robustkit.record.record import load
from robustkit.registry import defenses

THREAT = Threat("linf", 0.1)


class Side(nn.Module):
    """Class 1 where the first feature exceeds 1/2; knows its distance from there, times `claim`."""

    def __init__(self, claim: float = 1.0) -> None:
        super().__init__()
        self.claim = claim

    def forward(self, x: Tensor) -> Tensor:
        lead = 8 * (x.flatten(1)[:, :1] - 0.5)
        return torch.cat([-lead, lead], 1)

    def certificates(self) -> dict[str, Proof]:
        def within(x: Tensor, y: Tensor, threat: Threat, share: float = 1.0) -> Tensor:
            lead = (x.flatten(1)[:, 0].double() - 0.5) * (2 * y - 1)
            return share * self.claim * lead > threat.eps + 1e-6

        return {"side": within, "side-half": lambda x, y, t: within(x, y, t, 0.5)}


@pytest.fixture
def data() -> Dataset:
    """Eight points at distances 0.03 to 0.38 from the boundary."""
    x = torch.full((8, 1, 2, 2), 0.3)
    away, sign = torch.linspace(0.03, 0.38, 8), torch.tensor([1.0, -1.0]).repeat(4)
    x[:, 0, 0, 0] = 0.5 + sign * away
    return from_arrays("side", x.numpy(), (sign > 0).long().numpy())


def test_auto_and_quick_take_the_first_and_a_name_takes_its_own() -> None:
    names = [("auto", "side"), ("quick", "side"), ("auto(seconds=2)", "side"),
             ("side", "side"), ("side-half", "side-half")]  # fmt: skip
    for model in (Side(), WithSurrogates(Side(), {})):
        for method, name in names:
            found = build_certifier(model, (1, 2, 2), THREAT, method)
            assert found is not None
            assert (found.name, found.method) == (name, name)


def test_what_a_model_does_not_declare_is_refused_with_what_it_does() -> None:
    with pytest.raises(UsageError, match=r"smoothing, side, side-half, got 'components'"):
        build_certifier(Side(), (1, 2, 2), THREAT, "components")
    with pytest.raises(UsageError, match=r"smoothing, got 'side'"):
        build_certifier(nn.Flatten(), (1, 2, 2), THREAT, "side")


def test_bounds_asked_for_by_name_are_bounds() -> None:
    found = build_certifier(Side(), (1, 2, 2), THREAT, "ibp")
    assert found is not None
    assert found.name == "ibp"


def test_formulas_hold_for_models_that_answer_alike_twice() -> None:
    assert build_certifier(Side(), (1, 2, 2), THREAT, "auto", randomized=True) is None
    with pytest.raises(UsageError, match="two passes of this one differ"):
        build_certifier(Side(), (1, 2, 2), THREAT, "side", randomized=True)


def test_the_formula_gets_the_radius_with_what_float32_points_may_exceed_it() -> None:
    seen: list[Threat] = []

    class Spy(Side):
        def certificates(self) -> dict[str, Proof]:
            def proof(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
                seen.append(threat)
                return y >= 0

            return {"spy": proof}

    found = build_certifier(Spy(), (4,), THREAT, "spy")
    assert found is not None
    found.prove(torch.rand(2, 4), torch.zeros(2, dtype=torch.long))
    found.at(Threat("l0", 2)).prove(torch.rand(2, 4), torch.zeros(2, dtype=torch.long))
    assert [t.eps for t in seen] == [THREAT.limit(4), 2]


def test_a_row_says_which_certificate_and_by_what_a_point_was_proved(
    data: Dataset, tmp_path: Path
) -> None:
    record = evaluate(
        Side(), name="side", data=data, threat=THREAT, folder=tmp_path,
        attacks=["apgd(steps=10)"], certify="auto",
    )  # fmt: skip
    assert record.certify == "side"
    assert record.certified == record.robust == 6 / 8
    assert record.points.proof is not None
    assert set(record.points.proof) == {"side", None}


def test_an_attack_that_breaks_a_formula_stops_the_run(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match="certificate refuted"):
        evaluate(
            Side(claim=9.0), name="side", data=data, threat=THREAT, folder=tmp_path,
            attacks=["apgd(steps=10)"], certify="auto",
        )  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [lambda x: torch.full((len(x),), 0.3), lambda x: torch.ones(len(x) + 1, dtype=torch.bool),
     lambda x: True],
)  # fmt: skip
def test_what_is_no_bool_for_each_point_is_refused(answer: Callable[[Tensor], Any]) -> None:
    class Odd(Side):
        def certificates(self) -> dict[str, Any]:
            return {"odd": lambda x, y, threat: answer(x)}

    found = build_certifier(Odd(), (4,), THREAT, "odd")
    assert found is not None
    with pytest.raises(UsageError, match="certificate 'odd': expected a bool for each of 2 points"):
        found.prove(torch.rand(2, 4), torch.zeros(2, dtype=torch.long))


def test_declarations_of_another_kind_and_taken_names_are_refused() -> None:
    for declares, told in (({"crown": print}, "'crown' is the name"), ([print], "mapping"),
                           ({"mine": 3}, "mapping")):  # fmt: skip

        class Odd(Side):
            def certificates(self) -> Any:
                return declares  # noqa: B023

        with pytest.raises(UsageError, match=told):
            build_certifier(Odd(), (4,), THREAT, "auto")


def test_a_record_says_that_the_proof_is_the_models_own(data: Dataset, tmp_path: Path) -> None:
    record = evaluate(Side(), name="side", data=data, threat=THREAT, folder=tmp_path,
                      attacks=["apgd(steps=10)"], certify="auto")  # fmt: skip
    assert any("side, a formula of the model's own" in note for note in record.notes)


def test_there_is_no_proof_to_store_of_a_formula(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bounds on one network .* got side of side"):
        evaluate(
            Side(), name="side", data=data, threat=THREAT, folder=tmp_path, attacks=["fgsm"],
            certify="auto", save_proofs=True,
        )  # fmt: skip


def test_a_curve_has_certified_radii(data: Dataset, tmp_path: Path) -> None:
    given: dict[str, Any] = {"name": "side", "data": data, "folder": tmp_path}
    found = evaluate_grid(
        Side(), threat=THREAT, grid=[0.1, 0.2], attacks=["apgd(steps=10)"], certify="auto", **given
    )
    assert [record.certified for record in found] == [6 / 8, 4 / 8]


def test_bounds_of_a_network_of_distances_are_refused_in_words() -> None:
    for name, what in (("cbc", "Components"), ("glvq", "Prototypes")):
        net = defenses.build(name).network((1, 4, 4), 3)
        for method in ("ibp", "crown", "alpha-crown", "complete"):
            with pytest.raises(UsageError, match=what):
                build_certifier(net, (1, 4, 4), THREAT, method)


def test_a_card_names_the_certificate_that_it_counts(data: Dataset) -> None:
    found = measure(Side().eval(), data, THREAT, seed=0, device=torch.device("cpu"))
    assert found["side"] == found["pgd20"] == 6 / 8
    assert "ibp" not in found


def test_the_command_line_takes_the_names_of_formulas(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_weights(defenses.build("glvq").network((1, 28, 28), 10), weights)

    def run(method: str) -> Result:
        how = f"evaluate glvq --threat l2:0.1 --certify {method} --n 5 --attack fgsm --quiet"
        return CliRunner().invoke(
            program, [*how.split(), "--weights", str(weights), "--out", str(tmp_path / "out")]
        )

    done = run("crwn")
    assert done.exit_code == 2
    assert "smoothing, prototypes, prototypes-published, got 'crwn'" in done.stderr
    assert run("crown(x)").exit_code == 2
    assert run("prototypes").exit_code == 0
    assert load(next((tmp_path / "out").rglob("record.json"))).certify == "prototypes"
