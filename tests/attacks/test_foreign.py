"""Every class of torchattacks, Foolbox and AutoAttack: in the table, and as the table says."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.spec import Spec
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks, libraries
from robustkit.search.external import Batch, ExternalAttack, candidates

EPS: dict[Norm, float] = {"linf": 0.15, "l2": 1.0, "l1": 8.0, "l0": 40}
# A budget that takes milliseconds, by the names that the libraries use.
SHORT = {
    **{"steps": 3, "max_iterations": 10, "num_iter_set": 3, "n_queries": 20, "nb_sample": 8},
    **{"noise_batch_size": 2, "popsize": 4, "restarts": 2, "repeats": 3, "directions": 3},
    **{"binary_search_steps": 2, "initial_gradient_eval_steps": 10, "queries": 20},
    **{"max_gradient_eval_steps": 20, "population": 4, "N": 2, "m": 2, "len_kernel": 3},
}
LIBRARIES: dict[str, dict[str, Any]] = {
    name: libraries.entry(name).target.table for name in ("torchattacks", "foolbox", "autoattack")
}
SLOW = ("AutoAttack", "standard", "plus", "rand")  # they take no budget
INSTALLED = {"autoattack": "pyautoattack"}
RUNS = [
    pytest.param(
        library, name, norm, id=f"{library}-{name}-{norm}",
        marks=pytest.mark.skipif(
            importlib.util.find_spec(INSTALLED.get(library, library)) is None,
            reason=f"not installed: {library}",
        ),
    )
    for library, table in LIBRARIES.items()
    for name, entry in table.items()
    if not entry.lacks and name not in SLOW
    for norm in entry.norms
]  # fmt: skip


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small smooth model of five classes, and points that it gets right."""
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(3 * 20 * 20, 5)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(5, 1200, generator=draw))
        layer.bias.zero_()
    x = 0.2 + 0.6 * torch.rand(3, 3, 20, 20, generator=draw)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    return model, x, model(x).argmax(1)


def spec(library: str, name: str) -> Spec:
    """Ask for the class with a short budget."""
    if library == "autoattack":
        options = {"queries": 20} if name == "square" else {"steps": 3}
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = __import__(library)
        target = getattr(module if library == "torchattacks" else module.attacks, name)
        options = {key: SHORT[key] for key in inspect.signature(target).parameters if key in SHORT}
    return Spec(f"{library}:{name}", tuple(sorted(options.items())))


def test_every_installed_class_is_in_the_table() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = pytest.importorskip("torchattacks")
        other: Any = pytest.importorskip("foolbox")
    base = other.attacks.base.Attack
    named = {
        name
        for name, value in vars(other.attacks).items()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    }
    assert set(library.__all__) <= set(LIBRARIES["torchattacks"])
    assert named <= set(LIBRARIES["foolbox"])


@pytest.mark.parametrize(("library", "name", "norm"), RUNS)
def test_it_runs_and_stays_inside(
    library: str, name: str, norm: Norm, case: tuple[nn.Module, Tensor, Tensor]
) -> None:
    """What is told the radius returns inputs inside; the rest returns inputs."""
    if name.endswith("BrendelBethgeAttack") and importlib.util.find_spec("numba") is None:
        pytest.skip("not installed: numba")
    model, x, y = case
    threat, asked = Threat(norm, EPS[norm]), spec(library, name)
    attack = cast("ExternalAttack", attacks.build(asked))
    attack.jobs(threat, 5)
    assert isinstance(attack.strength(threat, 5), dict)
    z = candidates(attack, model, Batch(x, y, 3, 5), threat, str(asked))
    assert bool(z.isfinite().all())
    if attack.bounded(threat):
        moved = (z != x).flatten(1).any(1)
        assert bool(threat.contains(z, x)[moved].all())


@pytest.mark.parametrize("library", LIBRARIES)
def test_other_norms_and_too_few_classes_are_refused(library: str) -> None:
    pytest.importorskip(INSTALLED.get(library, library))
    for name, entry in LIBRARIES[library].items():
        attack = attacks.build(f"{library}:{name}")
        for norm, eps in EPS.items():
            if entry.lacks or norm not in entry.norms:
                with pytest.raises(UsageError, match=r"cannot run|supports|refuses"):
                    attack.jobs(Threat(norm, eps), 10)
        if entry.classes > 2:
            with pytest.raises(UsageError, match=f"with {entry.classes - 1} classes"):
                attack.jobs(Threat(entry.norms[0], 0.1), entry.classes - 1)


def test_a_class_of_another_version_tells_its_radius_by_its_signature(
    monkeypatch: pytest.MonkeyPatch, case: tuple[nn.Module, Tensor, Tensor]
) -> None:
    pytest.importorskip("torchattacks")
    model, x, y = case
    threat = Threat("linf", 0.03)
    for name in ("PIFGSM", "CW"):
        monkeypatch.delitem(LIBRARIES["torchattacks"], name)
    attack = cast("ExternalAttack", attacks.build("torchattacks:PIFGSM"))
    attack.jobs(threat, 5)
    z = candidates(attack, model, Batch(x, y, 3, 5), threat, "PIFGSM")
    assert bool(threat.contains(z, x).all())
    assert not torch.equal(z, x)
    with pytest.raises(UsageError, match="unknown to robustkit, and takes none of"):
        attacks.build("torchattacks:CW").jobs(Threat("l2", 0.1), 5)
