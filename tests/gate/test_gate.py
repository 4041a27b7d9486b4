"""The gate: what it answers, when it stops, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustkit.registry as registry
from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.stats.paired import mcnemar
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, shuffled
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.evaluate import evaluate
from robustkit.gate.baseline import Baseline, attacks_of, choose, load_baselines, open_points
from robustkit.gate.comparison import Candidate, check, compare
from robustkit.gate.criteria import Terms, tolerances
from robustkit.gate.decision import GateJudge
from robustkit.gate.paired_sequence import PairedSequence
from robustkit.gate.verdict import GateVerdict, MetricFinding, exit_code
from robustkit.record.points import Status
from robustkit.record.record import Record, load, save
from robustkit.registry import suites
from robustkit.search.audit import Audit
from robustkit.verify.flags import Flag

LINE_UP = ["apgd(steps=10)"]
THREAT = Threat.parse("linf:0.06")


def shaken(model: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """A copy with noise on its weights."""
    draw = torch.Generator().manual_seed(seed)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return other


def run(model: nn.Module, data: Dataset, folder: Path, **more: object) -> Record:
    given = {"name": "toy", "threat": THREAT, "attacks": LINE_UP, **more}
    return evaluate(model, data=data, folder=folder, device="cpu", **given)  # type: ignore[arg-type]


@pytest.fixture
def baseline(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> Baseline:
    run(nearest, blobs, tmp_path / "baseline")
    (found,) = load_baselines(tmp_path / "baseline")
    return found


Gate = Callable[..., GateVerdict]


@pytest.fixture
def gate(baseline: Baseline, blobs: Dataset, tmp_path: Path) -> Gate:
    """Check a model against the baseline."""

    def run_check(model: nn.Module, terms: Terms | None = None, **more: object) -> GateVerdict:
        given = {"folder": tmp_path / "candidate", "device": "cpu", **more}
        return check(Candidate("new", model), baseline, blobs, terms=terms, **given)  # type: ignore[arg-type]

    return run_check


class TestCheck:
    def test_the_same_model_passes(self, gate: Gate, nearest: nn.Module) -> None:
        verdict = gate(nearest, Terms({"robust": 0.3, "flags": 0}))
        assert verdict.answer == "pass"
        assert verdict.n < verdict.total == 80
        assert verdict.ended == "the answer was certain"
        robust, flags = verdict.findings
        assert (robust.drop, robust.lost, robust.gained) == (0.0, 0, 0)
        assert robust.low is not None and robust.high is not None
        assert robust.low <= 0 <= robust.high <= 0.3
        assert flags.answer == "pass"
        assert exit_code([verdict.answer]) == 0

    def test_a_ruined_model_fails_at_once(
        self, gate: Gate, nearest: nn.Module, baseline: Baseline
    ) -> None:
        verdict = gate(shaken(nearest, 5.0))
        assert verdict.answer == "regressed"
        assert verdict.n <= 48
        assert verdict.forwards < baseline.record.forwards / 2
        assert exit_code([verdict.answer, "pass", "undecided"]) == 1
        told = verdict.sentence()
        assert "new has regressed against toy (blobs, linf:0.06, " in told
        assert "tolerance 0.01" in told and "Weakest classes: " in told

    def test_replayed_inputs_are_tried_first(self, gate: Gate, nearest: nn.Module) -> None:
        with_, without = gate(nearest), gate(nearest, replay=False, fresh=True)
        assert with_.replayed > 0
        assert without.replayed == 0
        assert with_.findings[0].drop == without.findings[0].drop == 0

    def test_an_answer_is_given_again_without_a_pass(self, gate: Gate, nearest: nn.Module) -> None:
        ruined = shaken(nearest, 5.0)
        first = gate(ruined)
        assert first.n < first.total  # it ended early: the last attack is not finished
        assert gate(ruined).forwards == first.forwards

    def test_all_points_are_exact(
        self, gate: Gate, nearest: nn.Module, blobs: Dataset, baseline: Baseline, tmp_path: Path
    ) -> None:
        other = shaken(nearest, 0.3)
        verdict = gate(other, Terms({"robust": 0.0}), replay=False)
        alone = run(other, blobs, tmp_path / "alone")
        pairs = [(ok, alone.outcomes[p]) for p, ok in baseline.record.outcomes.items()]
        if verdict.n == 80:
            finding = verdict.findings[0]
            assert finding.lost == pairs.count((True, False))
            assert finding.gained == pairs.count((False, True))
            assert finding.low == pytest.approx(baseline.record.robust - alone.robust)
            assert finding.p == mcnemar(finding.lost, finding.gained)
        assert verdict.answer == ("regressed" if alone.robust < baseline.record.robust else "pass")

    def test_a_budget_leaves_it_undecided_and_the_same_command_goes_on(
        self, gate: Gate, nearest: nn.Module
    ) -> None:
        strict = Terms({"robust": 0.0})
        first = gate(nearest, strict, budget=Budget(forwards=1))
        assert (first.answer, first.n) == ("undecided", 16)
        assert first.findings[0].more == 64
        assert "the 64 points that are left decide" in first.sentence()
        assert [exit_code(["undecided"], word) for word in ("error", "fail", "pass")] == [3, 1, 0]
        again = gate(nearest, strict)
        assert (again.answer, again.n) == ("pass", 80)

    def test_a_new_flag_fails(self, gate: Gate, nearest: nn.Module) -> None:
        class Blind(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nearest

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                answer: torch.Tensor = self.inner(x).detach()
                return answer

        verdict = gate(Blind().eval(), Terms({"robust": 0.9, "flags": 0}))
        assert verdict.answer == "regressed"
        assert "no_gradient, which the baseline did not have" in verdict.sentence()
        assert gate(Blind().eval(), Terms({"robust": 0.9}), fresh=True).answer != "regressed"

    def test_an_unchanged_model_is_no_worse_for_an_early_end(
        self, nearest: nn.Module, tmp_path: Path
    ) -> None:
        """16 points of two classes tell nothing from guessing; all 200 do."""
        draw = torch.Generator().manual_seed(0)
        y = torch.arange(200) % 2
        x = torch.rand(200, 1, 6, 6, generator=draw)
        right = torch.rand(200, generator=draw) < 0.65
        x[:, 0, 0, 0] = 0.2 + 0.5 * torch.where(right, y, 1 - y) + 0.1 * x[:, 0, 0, 1]
        data = from_arrays("coins", x.numpy(), y.numpy(), classes=2)
        linear = nn.Linear(36, 2)
        model = nn.Sequential(nn.Flatten(), linear).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            linear.weight[:, 0] = torch.tensor([-1.0, 1.0])
            linear.bias[:] = torch.tensor([0.5, -0.5])
        assert not run(model, data, tmp_path / "old").flags
        (old,) = load_baselines(tmp_path / "old")
        verdict = check(Candidate("same", model), old, data, tmp_path / "new", device="cpu",
                        terms=Terms({"robust": 0.01, "flags": 0, "reliability": 0}),
                        budget=Budget(forwards=10))  # fmt: skip
        assert (verdict.answer, verdict.n) == ("undecided", 16)
        found = load(tmp_path / "new" / "record.json").flags
        assert [flag.name for flag in found] == ["chance"]

    def test_searches_are_compared_where_a_baseline_was_audited(
        self,
        nearest: nn.Module,
        blobs: Dataset,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What only the audit took is no loss of a candidate that nobody audits."""

        @suites.register("lax")
        @dataclass(frozen=True)
        class Lax:
            def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
                return ["fgsm"]

            def audit(self, threat: Threat) -> Audit:
                return Audit(LINE_UP)

        wide = {"suite": "lax", "attacks": (), "threat": Threat("linf", 0.12)}
        try:
            old = run(nearest, blobs, tmp_path / "old", **wide)
            assert old.audit is not None
            assert LINE_UP[0] in old.points.attack
            (baseline,) = load_baselines(tmp_path / "old")
            same = check(Candidate("same", nearest), baseline, blobs, tmp_path / "new",
                         terms=Terms({"robust": 0, "flags": 0}), device="cpu")  # fmt: skip
            assert (same.answer, same.n) == ("pass", 80)
            (again,) = load_baselines(tmp_path / "new")
            assert again.record.audit is None
            assert compare(baseline, again, Terms({"robust": 0})).answer == "pass"
            monkeypatch.setattr(Lax, "attacks", lambda *_: ["pgd(steps=2)"])
            other = check(Candidate("same", nearest), baseline, blobs, tmp_path / "other",
                          terms=Terms({"robust": 0}), device="cpu")  # fmt: skip
            assert other.answer == "pass"
            assert load(tmp_path / "other" / "record.json").attacks == ["fgsm"]
            untold = old.audit.model_copy(update={"attacks": []})
            early = old.model_copy(update={"audit": untold})
            with pytest.raises(UsageError, match="does not say which of its attacks were"):
                check(Candidate("same", nearest), baseline._replace(record=early), blobs,
                      tmp_path / "early", device="cpu")  # fmt: skip
        finally:
            registry.suites._entries.pop("lax")

    def test_a_curve_is_no_baseline_where_points_were_carried(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        evaluate_grid(nearest, name="toy", data=blobs, threat=THREAT, grid=[0.03, 0.06],
                      folder=tmp_path / "grid", attacks=LINE_UP, device="cpu")  # fmt: skip
        small, large = load_baselines(tmp_path / "grid")
        assert small.threat.eps < large.threat.eps
        model = Candidate("same", nearest)
        with pytest.raises(UsageError, match=r"part of a curve, and \d+ of its points are robust"):
            check(model, small, blobs, tmp_path / "new", device="cpu")
        with pytest.raises(UsageError, match="nothing attacked them here"):
            compare(small, small)
        assert check(model, large, blobs, tmp_path / "new", device="cpu").answer == "pass"

    def test_a_better_model_is_improved(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        run(shaken(nearest, 2.0), blobs, tmp_path / "poor")
        (poor,) = load_baselines(tmp_path / "poor")
        verdict = check(Candidate("new", nearest), poor, blobs, tmp_path / "new", device="cpu")
        assert verdict.answer == "improved"
        assert "new is better than toy" in verdict.sentence()
        assert exit_code([verdict.answer]) == 0

    def test_certified_points_can_be_gated(
        self, nearest: nn.Module, blobs: Dataset, baseline: Baseline, tmp_path: Path
    ) -> None:
        run(nearest, blobs, tmp_path / "proved", certify="ibp")
        (proved,) = load_baselines(tmp_path / "proved")
        assert proved.record.certified
        terms = Terms({"certified": 0.2})
        verdict = check(
            Candidate("new", nearest), proved, blobs, tmp_path / "new", terms=terms, device="cpu"
        )
        assert verdict.answer == "pass"
        with pytest.raises(UsageError, match="has no certified points to compare with"):
            check(Candidate("new", nearest), baseline, blobs, tmp_path / "no", terms=terms)

    def test_plain_reports_are_json(self, gate: Gate, nearest: nn.Module) -> None:
        import json

        plain = json.loads(json.dumps(gate(nearest).plain(), allow_nan=False))
        assert plain["schema"] == "robustkit/check/1"
        assert plain["findings"][0]["metric"] == "robust"
        assert plain["findings"][0]["drop"] == 0.0


class TestCompare:
    def test_two_records_give_the_verdict_of_a_run(
        self, gate: Gate, baseline: Baseline, blobs: Dataset, nearest: nn.Module, tmp_path: Path
    ) -> None:
        run(shaken(nearest, 0.6), blobs, tmp_path / "other", name="other")
        (other,) = load_baselines(tmp_path / "other")
        verdict = compare(baseline, other)
        assert verdict.n == 80
        assert verdict.findings[0].p is not None
        assert verdict.answer == gate(shaken(nearest, 0.6), replay=False).answer

    def test_outcomes_are_gathered_a_few_times_and_not_for_every_point(
        self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Record] = []
        whole = Record.outcomes
        assert isinstance(whole, property)
        assert whole.fget is not None
        get = whole.fget
        counted = property(lambda record: (asked.append(record), get(record))[1])
        monkeypatch.setattr(Record, "outcomes", counted)
        assert compare(baseline, baseline).n == 80
        assert len(asked) < 10

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"seed": 1}, "the seed was 0, now 1"),
            ({"attacks": ["fgsm"]}, "the attacks was"),
            ({"threat": Threat.parse("linf:0.05")}, "the threat model was linf:0.06, now"),
            ({"n": 40}, "it is about other points"),
        ],
    )
    def test_what_differs_is_refused(
        self, baseline: Baseline, nearest: nn.Module, blobs: Dataset, tmp_path: Path,
        change: dict[str, object], told: str,
    ) -> None:  # fmt: skip
        run(nearest, blobs, tmp_path / "other", **change)
        (other,) = load_baselines(tmp_path / "other")
        with pytest.raises(UsageError, match=told):
            compare(baseline, other)


class TestBaselines:
    def test_a_missing_one_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"there is no baseline at .*gone"):
            load_baselines(tmp_path / "gone")

    def test_the_only_one_serves_any_model_and_names_tell_several_apart(
        self, baseline: Baseline
    ) -> None:
        assert choose([baseline], "whatever") is baseline
        record = baseline.record.model_copy(update={"defense": "other"})
        both = [baseline, Baseline(record, Path("other.json"))]
        assert choose(both, "other") is both[1]
        with pytest.raises(UsageError, match=r"no baseline fits third. There is: toy on blobs"):
            choose(both, "third")
        with pytest.raises(UsageError, match="several baselines fit toy"):
            choose([baseline, baseline], "toy")

    def test_what_was_asked_for_must_fit(self, baseline: Baseline) -> None:
        assert choose([baseline], "toy", threat=THREAT, data="blobs") is baseline
        for asked in ({"threat": Threat.parse("linf:0.1")}, {"data": "mnist"}, {"suite": "parity"}):
            with pytest.raises(UsageError, match="no baseline fits toy"):
                choose([baseline], "toy", **asked)

    def test_the_points_must_be_the_same(
        self, baseline: Baseline, blobs: Dataset, tmp_path: Path
    ) -> None:
        x, y = (part.numpy() for part in blobs.fetch(range(80)))
        np.savez(tmp_path / "same.npz", x=x, y=y)
        assert len(open_points(baseline, f"npz:{tmp_path / 'same.npz'}", None)) == 80
        np.savez(tmp_path / "other.npz", x=x[::-1], y=y)
        with pytest.raises(UsageError, match="does not hold the points of the baseline"):
            open_points(baseline, f"npz:{tmp_path / 'other.npz'}", None)
        np.savez(tmp_path / "fewer.npz", x=x[:40], y=y[:40])
        with pytest.raises(UsageError, match="does not hold the points of the baseline"):
            open_points(baseline, f"npz:{tmp_path / 'fewer.npz'}", None)
        with pytest.raises(UsageError, match=r"cannot be had: .* name it with --data"):
            open_points(baseline, None, None)

    def test_a_suite_that_has_changed_is_not_used(self, baseline: Baseline) -> None:
        record = baseline.record.model_copy(update={"suite": "quick"})
        suite, attacks, note = attacks_of(baseline._replace(record=record), None)
        assert suite is None
        assert [str(spec) for spec in attacks] == LINE_UP
        assert note is not None and "the suite quick has changed" in note

    def test_attacks_that_are_gone_make_it_incompatible(self, baseline: Baseline) -> None:
        record = baseline.record.model_copy(update={"attacks": ["vanished(steps=3)"]})
        with pytest.raises(UsageError, match=r"cannot be run here: Unknown attack 'vanished'"):
            attacks_of(baseline._replace(record=record), None)

    def test_a_suite_by_name_reaches_the_surrogates_of_the_candidate(
        self, baseline: Baseline
    ) -> None:
        from robustkit.search.suites import line_up

        plain = [str(spec) for spec in line_up("quick", (), THREAT).specs]
        record = baseline.record.model_copy(update={"suite": "quick", "attacks": plain})
        assert attacks_of(baseline._replace(record=record), None) == ("quick", [], None)

    def test_a_baseline_of_a_stranger_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "record.json").write_text('{"schema": "other"}')
        with pytest.raises(UsageError, match="expected schema"):
            load_baselines(tmp_path)


class TestTerms:
    def test_metrics_are_read(self) -> None:
        assert tolerances((), 0.01) == {"robust": 0.01, "flags": 0.0}
        assert tolerances(("clean=0.02", "worst-class"), 0.05) == {
            "clean": 0.02,
            "worst-class": 0.05,
        }

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"tolerances": {"robsut": 0.1}}, "Unknown metric 'robsut'. Did you mean 'robust'"),
            ({"tolerances": {"robust": 1.0}}, "from 0 to below 1"),
            ({"tolerances": {}}, "at least one metric"),
            ({"confidence": 95}, "0 < confidence < 1, got 95"),
            ({"tolerances": {"tail-30": 0.1}, "claim": "population"}, "own points alone"),
        ],
    )
    def test_nonsense_is_refused(self, given: dict[str, object], told: str) -> None:
        with pytest.raises(UsageError, match=told):
            Terms(**given)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"such as clean=0.02, got 'clean=lots'"):
            tolerances(("clean=lots",), 0.01)


def outcome(standing: list[bool]) -> dict[int, Status]:
    return {p: "robust" if ok else "broken" for p, ok in enumerate(standing)}


class TestStream:
    def test_bounds_are_sure_of_what_is_left(self) -> None:
        # 10 points, the baseline stands on 6; seen: 4 that stood, of which 3 were lost.
        before = {p: p < 6 for p in range(10)}
        now = {0: False, 1: False, 2: False, 3: True}
        stream = PairedSequence(before, [0, 1, 2, 3], now, finite=True)
        # 2 more can be lost and 4 gained: the drop ends between (3 − 4) / 10 and (3 + 2) / 10.
        assert (stream.least, stream.most) == (-0.1, 0.5)
        assert stream.answer(0.6, 0.05, 0.05) == "pass"
        low, high = stream.bounds(0.05, 0.05)
        assert -0.1 <= low <= high <= 0.5

    def test_the_tolerance_itself_is_accepted(self) -> None:
        before = {p: True for p in range(100)}
        for lost, answer in ((7, "pass"), (8, "regressed")):
            now = {p: p >= lost for p in range(100)}
            stream = PairedSequence(before, list(range(100)), now, finite=True)
            assert stream.answer(0.07, 0.05, 0.05) == answer

    def test_a_population_stays_open_where_the_points_are_known(self) -> None:
        before = {p: True for p in range(100)}
        now = {p: p >= 8 for p in range(100)}
        stream = PairedSequence(before, shuffled(range(100), 0), now, finite=False)
        assert stream.answer(0.07, 0.05, 0.05) == "undecided"
        assert (stream.more(0.07, 0.05) or 0) > 100


class TestJudge:
    @pytest.fixture
    def judge(self, baseline: Baseline) -> Callable[..., GateJudge]:
        """A judge of a baseline of 400 points in 4 classes."""

        def make(standing: list[bool], **terms: float) -> GateJudge:
            n = len(standing)
            status = list(outcome(standing).values())
            points = {
                "index": list(range(n)),
                "label": [p % 4 for p in range(n)],
                "predicted": [p % 4 for p in range(n)],
                "status": status,
                "attack": [None if s == "robust" else LINE_UP[0] for s in status],
                "distance": [None] * n,
            }
            plain = baseline.record.model_dump(by_alias=True)
            plain["data"] |= {"n": n, "total": n}
            named = {key.replace("_", "-"): value for key, value in terms.items()}
            return GateJudge(Record.model_validate({**plain, "points": points}), Terms(named))

        return make

    def test_worst_class_and_tail_are_exact_with_all_points(
        self, judge: Callable[..., GateJudge]
    ) -> None:
        # Class 3 falls from 1 to 0.9, the others stay: the mean of the lowest 2 from 1 to 0.95.
        now = [not (p % 4 == 3 and p < 40) for p in range(400)]
        worst, tail = judge([True] * 400, worst_class=0.1, tail_30=0.04).findings(
            list(range(400)), outcome(now), ()
        )
        assert worst.low == pytest.approx(0.1) == worst.high
        assert tail.low == pytest.approx(0.05) == tail.high
        assert (worst.answer, tail.answer) == ("pass", "regressed")
        assert "weakest class" in worst.detail

    @pytest.mark.slow
    def test_bounds_of_a_class_metric_hold_at_every_moment(
        self, judge: Callable[..., GateJudge]
    ) -> None:
        """The drop of the worst class is 0.2; alarms at a tolerance of 0.2 are false."""
        alarms = runs = 0
        now = [not (p % 4 == 3 and p < 80) for p in range(400)]
        one = judge([True] * 400, worst_class=0.2)
        for seed in range(40):
            order = shuffled(range(400), seed)
            answers = [one.answers(order[:n], outcome(now))[0] for n in (50, 150, 250, 350)]
            alarms, runs = alarms + ("regressed" in answers), runs + 1
        assert clopper_pearson(alarms, runs, 0.99).low <= 0.05

    def test_false_alarms_are_shared_between_metrics(self, judge: Callable[..., GateJudge]) -> None:
        alone = judge([True] * 400, robust=0.1)
        both = judge([True] * 400, robust=0.1, clean=0.1)
        order, now = list(range(30)), outcome([p % 2 == 0 for p in range(30)])
        lows = [j.findings(order, now, ())[0].low for j in (alone, both)]
        assert lows[0] is not None and lows[1] is not None
        assert lows[1] < lows[0]

    def test_flags_of_the_baseline_are_not_new(self, baseline: Baseline) -> None:
        flagged = baseline.record.model_copy(
            update={"flags": [Flag(name="randomized", message="as it says")]}
        )
        judge = GateJudge(flagged, Terms({"flags": 0}))
        assert judge.findings([0], {0: "robust"}, ("randomized",))[0].answer == "pass"
        assert judge.findings([0], {0: "robust"}, ("chance",))[0].answer == "regressed"

    def test_flags_that_the_baseline_had_answered_are_no_graver_verdict(
        self, baseline: Baseline
    ) -> None:
        """Whether they are answered is known of finished runs alone."""
        flag = Flag(name="huge_eps", message="as it says", answered="through bpda")
        answered = baseline.record.model_copy(update={"flags": [flag]})
        assert answered.reliability == "suspicious"
        judge = GateJudge(answered, Terms({"reliability": 0}))
        assert judge.findings([0], {0: "robust"}, ("huge_eps",))[0].answer == "pass"

    def test_a_graver_verdict_regresses(self, baseline: Baseline) -> None:
        shaky = baseline.record.model_copy(
            update={"flags": [Flag(name="randomized", message="as it says")]}
        )
        judge = GateJudge(shaky, Terms({"reliability": 0}))
        for flags, answer in (
            ((), "pass"),
            (("inner_autograd",), "pass"),  # as suspicious as the baseline
            (("inner_autograd", "huge_eps"), "regressed"),
        ):
            (finding,) = judge.findings([0], {0: "robust"}, flags)
            assert finding.answer == answer
            assert bool(judge.objections(flags)) == (answer == "regressed")
        (finding,) = judge.findings([0], {0: "robust"}, ("huge_eps",))
        assert finding.sentence() == "reliability: suspicious → unreliable: huge_eps"
        sound = GateJudge(baseline.record, Terms({"reliability": 0}))
        assert sound.findings([0], {0: "robust"}, ("inner_autograd",))[0].answer == "regressed"
        assert sound.findings([0], {0: "robust"}, ("scaled_logits",))[0].answer == "pass"

    def test_notes_are_no_reason_for_distrust(self, baseline: Baseline) -> None:
        judge = GateJudge(baseline.record, Terms({"flags": 0}))
        assert judge.new_flags(("scaled_logits", "chance")) == ["chance"]


def test_a_finding_reads_like_a_sentence() -> None:
    finding = MetricFinding("robust", "regressed", 0.01, 0.8, 0.75, 0.02, 0.08, 6, 1, 100, 1000)
    told = "robust 0.800 → 0.750: a drop of 0.0500, between 0.0200 and 0.0800, tolerance 0.01"
    sampled = finding._replace(claim="population")
    assert sampled.sentence() == f"{told}, 6 points lost and 1 gained"
    seen = told.replace("0.0500,", "0.0500 on 100 points,")
    seen = seen.replace("0.0800,", "0.0800 on all 1000,")
    assert finding.sentence() == f"{seen}, 6 points lost and 1 gained"
    assert finding._replace(total=100).sentence() == sampled.sentence()
    weakest = finding._replace(metric="worst-class", lost=0, gained=0)
    assert "a drop of 0.0500 as seen on 100 points, between" in weakest.sentence()
    assert finding._replace(p=0.125).sentence().endswith("1 gained, McNemar p = 0.125")


def test_saved_records_are_baselines_too(baseline: Baseline, tmp_path: Path) -> None:
    save(baseline.record, tmp_path / "kept" / "records" / "toy.json")
    (found,) = load_baselines(tmp_path / "kept")
    assert found.record == baseline.record
    assert found.examples() is None
    assert baseline.examples() == baseline.path.parent
