"""Tables as a threat model: brute force, a linear program, trees, the whole run, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import robustkit
from robustkit.certify.certifier import build_certifier
from robustkit.core.table_rows import Rows
from robustkit.core.tabular import TabularThreat
from robustkit.errors import EvidenceAltered, UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.models.normalization import in_units
from robustkit.models.scores import of_estimator
from robustkit.registry import read_threat
from robustkit.search.functional import attack

# Two counts, a group of three and a count that may not change; 3 a + b <= 9 where the group has c.
RULES: dict[str, Any] = {
    "lower": np.zeros(6),
    "upper": np.array([5, 8, 1, 1, 1, 4]),
    "feature_kind": np.array(["integer", "integer", *["category"] * 3, "integer"]),
    "feature_group": np.array([-1, -1, 0, 0, 0, -1]),
    "feature_mutable": np.array([True] * 5 + [False]),
    "constraint_matrix": np.array([[3, 1, 0, 0, 14, 0.0]]),
    "constraint_bound": np.array([23.0]),
}
SEARCHES = (
    "capgd(loss=targeted_margin, random_start=true, restarts=3, steps=20)",
    "row_program",
    "row_search(queries=100)",
)


def counts(n: int, seed: int = 0) -> Tensor:
    draw = np.random.default_rng(seed)
    group = draw.integers(0, 3, n)
    a = draw.integers(0, np.where(group == 2, 3, 6))
    b = draw.integers(0, np.where(group == 2, np.minimum(9 - 3 * a, 8), 8) + 1)
    v = np.column_stack([a, b, np.eye(3)[group], draw.integers(0, 5, n)])
    return torch.from_numpy(v / RULES["upper"]).float()


def real(n: int, seed: int = 0) -> tuple[dict[str, Any], Tensor]:
    """Four real features of which two hold a budget, and two are bound by an equality."""
    rules = {
        "lower": np.array([0, 0, -2, -2.0]),
        "upper": np.array([4, 4, 2, 2.0]),
        "constraint_matrix": np.array([[1, 1, 0, 0], [1, -2, 0.5, 0]]),
        "constraint_bound": np.array([4.0, 2]),
        "equality_matrix": np.array([[0, 0, 1, 1.0]]),
        "equality_bound": np.array([0.5]),
    }
    draw = np.random.default_rng(seed)
    first = draw.uniform(0, 2, (n, 2)) * [0.8, 1]
    third = draw.uniform(-1, 0.3, n)
    v = np.column_stack([first, third, 0.5 - third])
    return rules, torch.from_numpy((v - rules["lower"]) / 4).float()


def saved(path: Path, rules: dict[str, Any], x: Tensor, y: Tensor) -> str:
    v = rules["lower"] + x.double().numpy() * (rules["upper"] - rules["lower"])
    np.savez(path, x=v, y=y.numpy(), classes=3, **rules)
    return f"npz:{path}"


class OfUnits(nn.Module):
    """A model of shares as one of rows in the units of `RULES`."""

    width: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("width", torch.from_numpy(RULES["upper"]).float())

    def forward(self, v: Tensor) -> Tensor:
        logits: Tensor = self.model(v / self.width)
        return logits


def threat_of(path: Path, eps: float = 0.3) -> TabularThreat:
    found = read_threat(f"tabular:{path}@{eps}")
    assert isinstance(found, TabularThreat)
    return found


def net(features: int, seed: int = 0, hidden: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    last = nn.Linear(hidden, 3)
    made = nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), last)
    made.requires_grad_(False).eval()
    last.weight *= 3
    return made


def all_inside(threat: TabularThreat, x: Tensor) -> Tensor:
    """Every row the adversary can make of x [1, d], written down without the code under test."""
    whole = [np.arange(6), np.arange(9)]
    grid = np.array([(a, b, *g) for a in whole[0] for b in whole[1] for g in np.eye(3)])
    v = np.column_stack([grid, np.full(len(grid), round(float(x[0, 5]) * 4))])
    clean = (x[0].double().numpy() * RULES["upper"]).round()
    near = (np.abs(v - clean) <= threat.eps * RULES["upper"] + 1e-9)[:, :2].all(1)
    obeys = v @ RULES["constraint_matrix"][0] <= 23
    return torch.from_numpy(v[near & obeys] / RULES["upper"]).float()


@pytest.mark.parametrize("eps", [0.25, 0.5])
def test_verdicts_and_certificate_agree_with_brute_force(eps: float, tmp_path: Path) -> None:
    x, model = counts(24), net(6)
    y = model(x).argmax(1)
    saved(tmp_path / "t.npz", RULES, x, y)
    threat = threat_of(tmp_path / "t.npz", eps)
    sets = [all_inside(threat, row[None]) for row in x]
    robust = torch.tensor(
        [bool((model(z).argmax(1) == c).all()) for z, c in zip(sets, y, strict=True)]
    )
    assert 0 < int(robust.sum()) < 24
    for z, row in zip(sets, x, strict=True):
        assert threat.contains(z, row.expand_as(z)).all()
        assert not threat.contains(z, counts(1, 5).expand_as(z)).all()
    found = attack(model, x, y, "all_rows", threat)
    assert torch.equal(model(found).argmax(1) == y, robust)
    for search in SEARCHES:
        z = attack(model, x, y, search, threat)
        assert threat.contains(z, x).all()
        survivors = model(z).argmax(1) == y
        assert (survivors | ~robust).all()  # a robust point is never broken
        assert int(survivors.sum()) <= int(robust.sum()) + 4
    proved = build_certifier(model, (6,), threat, "auto")
    assert proved is not None
    assert torch.equal(proved.prove(x, y), robust)
    for method in ("ibp", "crown"):
        part = build_certifier(model, (6,), threat, method)
        assert part is not None
        assert (~part.prove(x, y) | robust).all()


def test_a_linear_model_is_decided_as_by_a_linear_program(tmp_path: Path) -> None:
    rules, x = real(40)
    linear = nn.Linear(4, 3)
    model = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    torch.manual_seed(3)
    linear.weight.copy_(torch.randn(3, 4))
    y = model(x).argmax(1)
    saved(tmp_path / "t.npz", rules, x, y)
    threat = threat_of(tmp_path / "t.npz", 0.15)
    weight, bias = linear.weight.double().numpy(), linear.bias.double().numpy()
    best = np.full(40, -np.inf)
    lower, v = rules["lower"], x.double().numpy() * 4 + rules["lower"]
    for row in range(40):
        ends = np.stack([np.maximum(v[row] - 0.6, lower), np.minimum(v[row] + 0.6, lower + 4)], 1)
        for target in set(range(3)) - {int(y[row])}:
            w = (weight[target] - weight[y[row]]) / 4
            found = linprog(
                -w, rules["constraint_matrix"], rules["constraint_bound"],
                rules["equality_matrix"], rules["equality_bound"], ends,
            )  # fmt: skip
            margin = -found.fun - w @ lower + bias[target] - bias[y[row]]
            best[row] = max(best[row], margin)
    clear = torch.from_numpy(np.abs(best) > 1e-4)
    broken = torch.from_numpy(best > 0)
    assert 5 < int(broken.sum()) < 35
    assert int(clear.sum()) >= 38
    for search in ("row_program", SEARCHES[0]):
        z = attack(model, x, y, search, threat)
        assert threat.contains(z, x).all()
        mine = model(z).argmax(1) != y
        if search == "row_program":
            assert torch.equal(mine[clear], broken[clear])
        assert (~mine | broken | ~clear).all()
    certificate = build_certifier(model, (4,), threat, "crown")
    assert certificate is not None
    assert torch.equal(certificate.prove(x, y)[clear], ~broken[clear])


@pytest.mark.parametrize("kind", ["tree.DecisionTreeClassifier", "ensemble.RandomForestClassifier"])
def test_trees_are_decided_exactly_where_the_set_is_a_box(kind: str, tmp_path: Path) -> None:
    module, _, name = kind.partition(".")
    made = getattr(pytest.importorskip(f"sklearn.{module}"), name)
    rules = {key: array for key, array in RULES.items() if not key.startswith("constraint")}
    x = counts(300)
    y = ((x[:, 0] * 5 + x[:, 1] * 8 + 3 * x[:, 3] > 6).long() + (x[:, 5] > 0.6)).clamp_max(2)
    given = {"max_depth": 5, "random_state": 0}
    given |= {"n_estimators": 5} if module == "ensemble" else {}
    model = of_estimator(made(**given).fit(x.numpy(), y.numpy()), (6,), 3)
    x = x[:16]
    y = model(x).argmax(1)
    saved(tmp_path / "t.npz", rules, x, y)
    threat = threat_of(tmp_path / "t.npz", 0.2)
    certificate = build_certifier(model, (6,), threat, "auto")
    assert certificate is not None
    assert certificate.name == "trees"
    proved = certificate.prove(x, y)
    for row in range(16):
        around = Rows(threat.region(x[row : row + 1]))
        count = int(around.count)
        many = Rows(around.region.repeated(count))
        z = many.region.encoded(many.made(torch.arange(count)))
        assert bool((model(z).argmax(1) == y[row]).all()) == bool(proved[row])
    assert 0 < int(proved.sum()) < 16
    record = robustkit.evaluate(model, (x, y), threat, certify="auto", folder=tmp_path / "run")
    assert record.robust == record.certified == pytest.approx(float(proved.double().mean()))


QUICK = ("capgd(loss=margin, random_start=true, steps=8)", "row_program(steps=1)",
         "row_search(queries=30)", "all_rows(most=60)")  # fmt: skip


@pytest.mark.parametrize("search", QUICK)
def test_searches_do_not_depend_on_the_batch(search: str, tmp_path: Path) -> None:
    x, model = counts(12), net(6)
    y = model(x).argmax(1)
    saved(tmp_path / "t.npz", RULES, x, y)
    threat = threat_of(tmp_path / "t.npz")
    whole = attack(model, x, y, search, threat, slots=12)
    assert torch.equal(whole, attack(model, x, y, search, threat, slots=5))


def test_a_run_reads_the_rules_of_its_data_and_is_verified(tmp_path: Path) -> None:
    x, shares = counts(8), net(6)
    y = shares(x).argmax(1)
    data, model = saved(tmp_path / "t.npz", RULES, x, y), OfUnits(shares)
    given: dict[str, Any] = {"certify": "auto"}
    record = robustkit.evaluate(model, data, "tabular:0.3", folder=tmp_path / "run", **given)
    assert record.certified is not None
    assert record.robust == record.certified < 1  # the bracket closes: every set is finite
    assert record.threat.norm == f"tabular:{tmp_path / 't.npz'}@0.3"
    assert record.threat.content == threat_of(tmp_path / "t.npz").digest()
    baseline = load_baselines(tmp_path / "run")[0]
    opened = robustkit.open_dataset(data)
    assert verify_record(baseline, in_units(model, opened), opened, sample=1).holds
    # Other rules in the same file are another threat model.
    saved(tmp_path / "t.npz", RULES | {"feature_mutable": np.array([True] * 6)}, x, y)
    with pytest.raises(EvidenceAltered, match=r"what tabular:.* is read from differ"):
        _ = baseline.threat
    with pytest.raises(UsageError, match="another"):
        robustkit.evaluate(model, data, "tabular:0.3", folder=tmp_path / "run", **given)


def test_clean_rows_that_break_the_rules_are_named(tmp_path: Path) -> None:
    x, model = counts(20), net(6)
    group, over = x.clone(), x.clone()
    group[7, 2:5] = torch.tensor([1.0, 1.0, 0.0])
    over[3] = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    hole = x.clone()
    hole[9, 2:5] = 0
    wrong = {
        "point 7 breaks .* group of feature 2 to feature 4 holds 2 ones": group,
        "point 9 breaks .* holds 0 ones": hole,
        r"point 3 breaks .* constraint 0 .* is missed by 14": over,
    }
    for message, points in wrong.items():
        data = saved(tmp_path / "t.npz", RULES, points, torch.zeros(20, dtype=torch.long))
        with pytest.raises(UsageError, match=message):
            robustkit.evaluate(model, data, "tabular:0.3", folder=tmp_path / "run")


def test_requests_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x, model = counts(4), net(6)
    y = torch.zeros(4, dtype=torch.long)
    data = saved(tmp_path / "t.npz", RULES, x, y)
    for text in ("tabular:", "tabular:none.npz@0.1", "tabular:0", "tabular:wide"):
        with pytest.raises(UsageError, match=r"expected|does not exist"):
            read_threat(text)
    with pytest.raises(UsageError, match="takes its rules from the npz of the data"):
        robustkit.evaluate(model, (x, y), "tabular:0.1")
    rules, other = real(4)
    saved(tmp_path / "other.npz", rules, other, y)
    with pytest.raises(UsageError, match=r"describes 4 features, got inputs \[6\]"):
        robustkit.evaluate(model, (x, y), f"tabular:{tmp_path / 'other.npz'}@0.1")
    np.savez(tmp_path / "wider.npz", **RULES | {"upper": RULES["upper"] + [1, 0, 0, 0, 0, 0]})
    with pytest.raises(UsageError, match=r"expected the upper of .*, got others"):
        robustkit.evaluate(model, data, f"tabular:{tmp_path / 'wider.npz'}@0.1")
    with pytest.raises(UsageError, match="has rules for each feature"):
        robustkit.evaluate(model, data, "tabular:0.1", attacks=["apgd"])
    with pytest.raises(UsageError, match="capgd supports tabular"):
        attack(model, x, y, "capgd", "linf:0.1")
    with pytest.raises(UsageError, match=r"expected --certify auto, .* got alpha-crown"):
        build_certifier(model, (6,), threat_of(tmp_path / "t.npz"), "alpha-crown")
    bound = replace(threat_of(tmp_path / "t.npz"), eps=0.9)
    assert build_certifier(model, (6,), bound, "auto") is not None


def test_a_radius_that_is_small_beside_the_bounds_is_one(tmp_path: Path) -> None:
    """50 of 10^9: near 0 float32 has many numbers within it, and one of them breaks the point."""
    rules = {"lower": np.zeros(1), "upper": np.array([1e9]), "feature_eps": np.array([50.0])}
    tree = pytest.importorskip("sklearn.tree")
    fitted = tree.DecisionTreeClassifier().fit([[10.0], [40.0]], [0, 1])
    x, y, z = torch.tensor([[1e-8]]), torch.tensor([0]), torch.tensor([[4e-8]])
    opened = robustkit.open_dataset(saved(tmp_path / "t.npz", rules, x, y))
    model = in_units(of_estimator(fitted, (1,), 2), opened)
    threat = threat_of(tmp_path / "t.npz", 1.0)
    assert threat.contains(z, x).all() and model(z).argmax(1) != y == model(x).argmax(1)
    proof = build_certifier(model, (1,), threat, "trees")
    assert proof is not None and not proof.prove(x, y).any()


def test_certificates_that_a_model_declares_for_norms_are_not_believed(tmp_path: Path) -> None:
    class Declares(nn.Sequential):
        def certificates(self) -> dict[str, Any]:
            return {"formula": lambda x, y, threat: torch.ones(len(x), dtype=torch.bool)}

    x, model = counts(8), Declares(*net(6))
    y = model(x).argmax(1)
    saved(tmp_path / "t.npz", RULES, x, y)
    for method in ("auto", "quick"):
        proof = build_certifier(model, (6,), threat_of(tmp_path / "t.npz", 1.0), method)
        assert proof is not None and not proof.prove(x, y).all()
