"""The suite `adaptive`: what it does about findings, what it costs without, and how it resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit.registry as registry
from robustkit.core.spec import Spec
from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset, subset
from robustkit.errors import UsageError
from robustkit.evaluation import adapt
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.prepare import prepare
from robustkit.evaluation.settings import Settings, ask
from robustkit.evaluation.watcher import Watcher
from robustkit.models.load import load_model
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.record.record import Record
from robustkit.registry import attacks, suites
from robustkit.search.audit import Audit
from robustkit.search.findings import Findings, Remedies
from robustkit.search.protocol import draws, surrogate_of
from robustkit.search.suites import LineUp, line_up

THREAT = Threat("linf", 0.08)
LIGHT = "adaptive(audit_least=2, queries=200)"
FLAG = "gradient_mismatch"


def lined(findings: Findings, threat: Threat = THREAT) -> LineUp:
    return line_up("adaptive", (), threat, None, findings)


def lined_for(model: Any, findings: Findings) -> LineUp:
    """Return the line-up against a model that declares surrogates and is lent a student."""
    lent = WithSurrogates(model, {"student": torch.relu})
    return line_up("adaptive", (), THREAT, lent, findings)


def parts(line: LineUp) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return what runs on all points, on a sample first, in the audit, and in reserve."""
    texts, end = [str(spec) for spec in line.specs], len(line.specs) - line.reserve
    first = line.audited - line.screened
    return texts[:first], texts[first : line.audited], texts[line.audited : end], texts[end:]


def names(texts: Sequence[str]) -> list[str]:
    return [text.partition("(")[0] for text in texts]


def through(texts: Sequence[str]) -> list[tuple[str, int]]:
    """Return surrogate and draws of every climb."""
    built = [attacks.build(text) for text in texts if text.startswith("relay")]
    return [(surrogate_of(search), draws(search)) for search in built]


FAST = [str(Spec.parse(text)) for text in suites.build("fast").audit(THREAT).attacks]


def test_nothing_found_is_fast_with_transfer_on_a_sample() -> None:
    line, screened, audit, reserve = parts(lined(Findings(transfer=("undefended",))))
    assert line == ["relay"]
    assert through(screened) == [("undefended", 1)]
    assert audit == FAST
    assert names(reserve) == ["apgd", "spsa", "square"]


def test_what_nothing_calls_for_is_tried_on_a_sample() -> None:
    line, screened, _, _ = parts(lined(Findings(surrogates=("bpda", "smooth", "part.net.0"))))
    assert line == ["relay"]
    assert through(screened) == [("bpda", 1), ("smooth", 1), ("part.net.0", 1)]


def test_a_flag_promotes_what_has_the_models_decisions_and_a_sound_gradient() -> None:
    line, screened, _, _ = parts(
        lined(Findings((FLAG,), ("smooth", "bpda"), ("undefended",), true=("bpda",)))
    )
    assert through(line) == [("", 1), ("bpda", 1)]
    assert through(screened) == [("smooth", 1), ("undefended", 1), ("student", 1)]
    assert names(screened)[3:] == ["apgd", "apgd", "basin", "basin", "spsa", "square"]
    aside = [text for text in screened[3:] if "surrogate=bpda" in text]
    assert names(aside) == ["apgd", "apgd", "basin", "square"]


def test_declared_surrogates_run_on_all_points_under_a_flag() -> None:
    model = Shaky(nn.Identity())
    healthy = Findings((), ("bpda", "smooth"))
    line, screened, _, _ = parts(lined_for(model, healthy))
    assert through(line) == [("", 1)]
    assert through(screened) == [("still", 1), ("bpda", 1), ("smooth", 1)]
    flagged = replace(healthy, flags=(FLAG,), true=("bpda",))
    line, screened, _, _ = parts(lined_for(model, flagged))
    assert through(line) == [("", 1), ("still", 1), ("bpda", 1)]
    assert through(screened) == [("smooth", 1), ("student", 1)]
    # Noise: more draws than one are tried on a sample, through them too.
    noisy = replace(flagged, eot=8, noisy=("still",))
    line, screened, _, _ = parts(lined_for(model, noisy))
    assert through(line) == [("", 1), ("still", 1), ("bpda", 1)]
    assert ("still", 2) in through(screened) and ("still", 8) in through(screened)


def test_gradients_that_lead_nowhere_are_replaced_by_queries() -> None:
    line, screened, audit, _ = parts(lined(Findings(("one_hot", "no_gradient"))))
    assert names(line) == ["relay", "relay", "apgd", "apgd", "rays", "rays"]
    assert not screened
    # Labels tell of no progress along a surrogate.
    assert "relay(surrogate=student)" in line
    assert line[-1] == "rays(patience=256, queries=10000, surrogate=student)"
    assert audit == FAST
    line, _, _, _ = parts(lined(Findings(("one_hot", "no_gradient")), Threat("l2", 0.5)))
    assert names(line)[-1] == "hopskipjump"
    line, _, _, _ = parts(lined(Findings(("no_gradient",))))
    assert names(line)[-2:] == ["spsa", "square"]


def test_flags_are_answered_through_what_has_the_models_own_values() -> None:
    bent, one_hot = "gradient_mismatch", "one_hot"
    answers = lined(Findings((bent,), ("bpda",), true=("bpda",))).answers
    assert not lined(Findings((bent,), ("bpda",))).answers  # bent as well
    assert bent in answers
    assert not {"black_box", "stateful", "randomized", "transfer"} & set(answers)
    assert not lined(Findings((one_hot,), ("smooth",))).answers
    assert not lined(Findings((), ("bpda",))).answers


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_finding_has_a_line_up(norm: Norm) -> None:
    for flags in ((), (FLAG,), ("one_hot", "randomized"), ("piecewise_constant",)):
        for eot in (1, 5):
            line = lined(Findings(flags, ("smooth",), ("undefended",), eot), Threat(norm, 0.5))
            assert len(line.specs) == len(set(line.specs))
            assert line.audited >= 1


class Shaky(nn.Module):
    """Random logits around those of `inner`, and a stand-in without the noise."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
        return logits

    def surrogates(self) -> dict[str, Any]:
        return {"still": self.inner}


def asked(model: Any, data: Dataset, folder: Path) -> Settings:
    return ask(model, data, THREAT, name="net", suite="adaptive", device="cpu", folder=folder)


def test_noise_is_averaged_over_more_and_more_draws() -> None:
    noisy = ("still", "bpda")
    found = Findings(("randomized",), ("bpda", "smooth"), (), eot=28, noisy=noisy)
    line = line_up("adaptive", (), THREAT, Shaky(nn.Identity()), found)
    on_all, screened, _, _ = parts(line)
    assert on_all == ["relay(patience=128)"]  # noise alone masks no gradient
    assert through(screened) == [
        ("still", 1), ("bpda", 1), ("smooth", 1), ("", 7), ("still", 7), ("", 28), ("still", 28),
    ]  # fmt: skip
    assert "apgd(eot=28)" in screened
    # By number, with `relay` as 0: more draws follow fewer through the same.
    assert [line.below(n) for n in range(9)] == [None] * 5 + [1, 4, 5, None]


@pytest.mark.slow
@pytest.mark.usefixtures("brief_adaptive")
def test_the_noise_of_a_model_and_of_its_surrogates_is_found(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    settings = asked(Shaky(hardened).eval(), few, tmp_path)
    _, line = adapt.adapt_line_up(settings, prepare(settings))
    assert line.findings is not None
    assert "randomized" in line.findings.flags
    assert line.findings.eot >= 4
    assert "still" not in line.findings.noisy
    tried = dict(through([str(spec) for spec in line.specs[: line.audited]]))
    assert tried["still"] == 1
    assert tried[""] == line.findings.eot


class Masked(nn.Module):
    """Decides as `inner`, behind an input that no gradient passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.detach() * 255).round() / 255 + 0 * x
        logits: Tensor = self.inner(hidden)
        return logits


@pytest.fixture
def few(bundled: Dataset) -> Dataset:
    return subset(bundled, range(0, 1000, 40))


def run(model: nn.Module, data: Dataset, folder: Path, **options: Any) -> Record:
    return evaluate(
        model, name="net", data=data, threat=THREAT, folder=folder, **{"device": "cpu", **options}
    )


def outcome(record: Record) -> list[tuple[int, str, str | None]]:
    points = record.points
    return list(zip(points.index, points.status, points.attack, strict=True))


@pytest.mark.usefixtures("brief_adaptive")
@pytest.mark.slow
def test_a_mask_is_attacked_through(hardened: nn.Module, few: Dataset, tmp_path: Path) -> None:
    truth = run(hardened, few, tmp_path / "open", suite="quick")
    fooled = run(Masked(hardened).eval(), few, tmp_path / "quick", suite="quick")
    record = run(Masked(hardened).eval(), few, tmp_path / "adaptive", suite=LIGHT)
    assert fooled.robust > truth.robust  # the mask works on a naive suite
    assert record.robust <= truth.robust + 0.04
    answers = {flag.name: flag.answered for flag in record.flags}
    assert "bpda" in (answers["no_gradient"] or "")
    assert (fooled.reliability, record.reliability) == ("unreliable", "suspicious")
    assert record.strongest_attack == "relay(patience=32, surrogate=bpda)"
    assert record.strongest_attack in record.points.attack


def test_a_search_that_starts_along_a_stand_in_is_not_blind(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    line = ["apgd(steps=5)", "square(queries=20, surrogate=bpda)"]
    record = run(Masked(hardened).eval(), few, tmp_path, attacks=line)
    assert record.stages[1].broken > 1
    flags = {flag.name for flag in record.flags}
    assert "transfer" in flags and "black_box" not in flags


class Cast(nn.Module):
    """Answers as `inner`, in another type or with more classes."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if self.how == "more":
            return torch.cat([logits, logits.amin(1, keepdim=True) - torch.ones(2)], 1)
        if self.how == "labels":
            return nn.functional.one_hot(logits.argmax(1), 10)
        return logits.to(getattr(torch, self.how))


@pytest.mark.slow
@pytest.mark.usefixtures("brief_adaptive")
@pytest.mark.parametrize("how", ["float64", "float16", "labels", "more"])
def test_a_lender_is_compared_with_outputs_of_any_type(
    how: str, hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    settings = asked(Cast(hardened, how).eval(), few, tmp_path)
    _, line = adapt.adapt_line_up(settings, prepare(settings))
    assert line.findings is not None
    # A lender that knows fewer classes cannot say which of the others is next.
    assert line.findings.transfer == (() if how == "more" else ("undefended",))


def test_a_lender_that_nobody_knows_is_refused(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="undefnded"):
        run(hardened, few, tmp_path, suite="adaptive(transfer=undefnded)")


def test_l0_is_refused_by_its_own_name(hardened: nn.Module, few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suite adaptive is not defined for l0"):
        evaluate(hardened, data=few, threat="l0:5", suite="adaptive", folder=tmp_path)


class Shattered(nn.Module):
    """A fine ripple on the logits, with its true gradient; clamped where nothing is clamped."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.clamp(0, 1))
        return logits + 0.003 * torch.sin(3000 * x.flatten(1)[:, :700:70])


@pytest.mark.usefixtures("brief_adaptive")
def test_a_stand_in_with_a_bent_gradient_answers_nothing(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    settings = asked(Shattered(hardened).eval(), few, tmp_path)
    _, line = adapt.adapt_line_up(settings, prepare(settings))
    assert line.findings is not None
    assert "gradient_mismatch" in line.findings.flags
    assert "bpda" in line.findings.surrogates and not line.findings.true
    assert not line.answers
    assert any(spec.name == "spsa" for spec in line.specs[: line.audited])


@pytest.mark.slow
@pytest.mark.usefixtures("brief_adaptive")
def test_a_fresh_run_has_a_student_of_its_own(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    """Functions have no weights by which to tell one teacher from another."""
    students = []
    for shift in (0, 1):

        def teacher(x: Tensor, shift: int = shift) -> Tensor:
            return nn.functional.one_hot(hardened(x).argmax(1), 10).roll(shift, 1).float()

        settings = asked(teacher, few, tmp_path)
        settings = replace(settings, fresh=True)
        adapt.adapt_line_up(settings, prepare(settings))
        students.append((tmp_path / "student.safetensors").read_bytes())
    assert students[0] != students[1]


@pytest.mark.slow
def test_health_costs_little_and_changes_nothing(bundled: Dataset, tmp_path: Path) -> None:
    model, data = load_model("pgd_at", data=bundled).model, subset(bundled, range(0, 1000, 120))
    fast = run(model, data, tmp_path / "fast", suite="fast(audit_least=2)")
    record = run(model, data, tmp_path / "adaptive", suite="adaptive(audit_least=2)")
    assert not [flag for flag in record.flags if flag.name != "chance"]
    assert record.outcomes == fast.outcomes
    assert record.forwards <= 1.25 * fast.forwards
    assert record.backwards <= 1.25 * fast.backwards
    assert not any(attack.startswith("spsa") for attack in record.attacks)


@pytest.mark.slow
@pytest.mark.usefixtures("brief_adaptive")
def test_an_interrupted_run_goes_on_with_what_was_found(
    hardened: nn.Module, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Masked(hardened).eval()

    class Fuse(Watcher):
        left = 3

        def advance(self, done: int, robust: int, points: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    few = subset(few, range(0, 25, 5))
    whole = run(model, few, tmp_path / "whole", suite=LIGHT)
    with pytest.raises(KeyboardInterrupt):
        run(model, few, tmp_path / "cut", suite=LIGHT, watcher=Fuse(), batch_size=9)

    def refuse(*_: object) -> None:
        raise AssertionError("a run that goes on must not look again")

    monkeypatch.setattr(adapt, "_find", refuse)
    cut = run(model, few, tmp_path / "cut", suite=LIGHT)
    assert outcome(cut) == outcome(whole)
    assert cut.attacks == whole.attacks


@dataclass(frozen=True)
class Toy:
    """Gives an attack without gradients what one step has left, and keeps another in reserve."""

    queries: int = 1

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        return ["pgd(steps=1, step_size=0.001, random_start=false)"]

    def audit(self, threat: Threat) -> Audit:
        return Audit([f"square(queries={self.queries})"], near=1.0)

    def remedies(self, threat: Threat, surrogates: Sequence[str], findings: Findings) -> Remedies:
        return Remedies(reserve=["spsa(steps=1, pairs=1)"])


@pytest.fixture
def toy() -> Iterator[None]:
    suites.register("toy")(Toy)
    yield
    registry.suites._entries.pop("toy")


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("called", [False, True])
def test_the_reserve_runs_where_attacks_without_gradients_took_points(
    hardened: nn.Module, few: Dataset, tmp_path: Path, called: bool
) -> None:
    suite = "toy(queries=100)" if called else "toy"
    threat = THREAT if called else Threat("linf", 1e-4)
    record = evaluate(
        hardened, name="net", data=few, threat=threat, folder=tmp_path, device="cpu", suite=suite
    )
    blind = sum(attack is not None and "square" in attack for attack in record.points.attack)
    assert (blind > 1) == called
    assert ("spsa(pairs=1, steps=1)" in record.attacks) == called
    again = evaluate(
        hardened, name="net", data=few, threat=threat, folder=tmp_path, device="cpu", suite=suite
    )
    assert again == record


@dataclass(frozen=True)
class Shallow(Toy):
    """Gives an attack with gradients what one step has left, and keeps restarts in reserve."""

    def audit(self, threat: Threat) -> Audit:
        return Audit([f"apgd(steps={self.queries})"], near=1.0)

    def remedies(self, threat: Threat, surrogates: Sequence[str], findings: Findings) -> Remedies:
        return Remedies(reserve=["apgd(steps=2, restarts=2)", "square(queries=1)"])


@pytest.mark.parametrize("found", [False, True])
def test_restarts_follow_where_gradients_of_the_audit_took_points(
    hardened: nn.Module, few: Dataset, tmp_path: Path, found: bool
) -> None:
    suites.register("shallow")(Shallow)
    try:
        record = evaluate(
            hardened, name="net", data=few, threat=THREAT if found else Threat("linf", 1e-4),
            folder=tmp_path, device="cpu", suite="shallow(queries=20)",
        )  # fmt: skip
    finally:
        registry.suites._entries.pop("shallow")
    assert (record.stages[1].broken > 0) == found
    assert ("apgd(restarts=2, steps=2)" in record.attacks) == found
    assert "square(queries=1)" not in record.attacks


def test_the_student_and_lenders_are_lent_not_declared(few: Dataset, tmp_path: Path) -> None:
    line = line_up("adaptive", (), THREAT, WithSurrogates(nn.Identity(), {"a": torch.relu}),
                   Findings(transfer=("a",)))  # fmt: skip
    assert parts(line)[0] == ["relay"]
    assert through(parts(line)[1]) == [("a", 1)]
