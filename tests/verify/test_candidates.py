"""Verification: what a search claims is checked again."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from robustkit.core.threat import Norm, Threat
from robustkit.errors import RobustkitError
from robustkit.verify.candidates import _limits, predict, verify

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def bright(x: Tensor) -> Tensor:
    """Class 1 if the first coordinate is above 0.5, else class 0."""
    first = x.flatten(1)[:, :1] - 0.5
    return torch.cat([-first, first, torch.full_like(first, -9)], dim=1)


def moved(*shifts: float) -> tuple[Tensor, Tensor]:
    """Points at 0.4, and the same with the first coordinate shifted."""
    x = torch.full((len(shifts), 1, 2, 2), 0.4)
    z = x.clone()
    z[:, 0, 0, 0] += torch.tensor(shifts)
    return z, x


@pytest.mark.parametrize("norm", NORMS)
def test_a_candidate_stands_if_the_model_is_fooled(norm: Norm) -> None:
    z, x = moved(0.05, 0.15, -0.2)
    y = torch.tensor([0, 0, 1])
    verdict = verify(bright, z, x, y, Threat(norm, 0.2), attack="toy", points=[3, 1, 4])
    assert verdict.broken.tolist() == [False, True, True]
    assert verdict.predicted.tolist() == [0, 1, 0]
    assert verdict.distance.dtype == torch.float64
    assert verdict.distance.tolist() == pytest.approx([0.05, 0.15, 0.2], abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_outside_the_ball_is_an_error_of_the_attack(norm: Norm) -> None:
    z, x = moved(0.05, 0.2001, 0.1, 0.3)
    with pytest.raises(RobustkitError) as caught:
        verify(bright, z, x, torch.zeros(4), Threat(norm, 0.2), attack="toy", points=[3, 1, 4, 15])
    assert str(caught.value) == (
        f"toy left the threat model {norm}:0.2 (box [0, 1]) on points 1, 15: distance up to 0.3. "
        "The search has an error; its verdicts are not used."
    )


def test_outside_the_box_is_an_error_of_the_attack() -> None:
    x = torch.full((2, 3), 0.95)
    z = x.clone()
    z[1, 2] = 1.0000001
    with pytest.raises(RobustkitError, match=r"toy left the threat model .* on points 8: distance"):
        verify(bright, z, x, torch.zeros(2), Threat("linf", 0.2), attack="toy", points=[7, 8])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_candidate_that_is_no_number_is_an_error(bad: float) -> None:
    z, x = moved(0.1, 0.1)
    z[0, 0, 1, 1] = bad
    with pytest.raises(RobustkitError, match="on points 7"):
        verify(bright, z, x, torch.zeros(2), Threat("linf", 0.2), attack="toy", points=[7, 8])


def test_many_points_outside_do_not_flood_the_message() -> None:
    z, x = moved(*[0.5] * 20)
    with pytest.raises(
        RobustkitError, match=r"points 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(20 in all\)"
    ):
        verify(bright, z, x, torch.zeros(20), Threat("l2", 0.2), attack="a", points=range(20))


def test_an_answer_that_is_no_number_is_no_verdict() -> None:
    def broken(x: Tensor) -> Tensor:
        return bright(x).where(x.flatten(1)[:, :1] < 0.55, torch.nan)

    z, x = moved(0.1, 0.2)
    with pytest.raises(RobustkitError, match=r"NaN or infinite logits on what toy found .* 8\."):
        verify(broken, z, x, torch.zeros(2), Threat("l2", 0.2), attack="toy", points=[7, 8])


class Fickle:
    """Answers from a script, one class per pass, for all rows."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)

    def __call__(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        chosen = torch.tensor([self.script.pop(0)] * len(x))
        return torch.nn.functional.one_hot(chosen, 3).double()


class TestRandomized:
    def judge(self, *script: int) -> tuple[bool, int, float, int]:
        z, x = moved(0.1)
        y, threat = torch.tensor([2]), Threat("linf", 0.2)
        verdict = verify(
            Fickle(*script), z, x, y, threat, attack="toy", points=[0], randomized=True
        )
        assert verdict.errors is not None
        return (
            bool(verdict.broken), int(verdict.predicted), float(verdict.errors), verdict.passes
        )  # fmt: skip

    def test_three_right_answers_end_it(self) -> None:
        broken, predicted, errors, passes = self.judge(2, 2, 2)
        assert (broken, predicted, passes) == (False, 2, 3)
        assert math.isnan(errors)
        assert self.judge(1, 2, 2, 1, 2, 2)[::3] == (False, 6)

    def test_eleven_errors_in_a_row_are_enough(self) -> None:
        assert self.judge(*[1] * 11, *[1] * 20) == (True, 1, 1.0, 31)

    @pytest.mark.parametrize(
        ("script", "seen"),
        [([2, 2, 2], 0), ([1, 2, 2, 2], 1 / 7), ([1, 1, 2, 1, 2, 2, 2], 3 / 10)],
    )
    def test_it_says_how_often_what_was_refused_had_fooled_the_model(
        self, script: list[int], seen: float
    ) -> None:
        """As a share of three passes more than there were: few say little."""
        z, x = moved(0.1)
        verdict = verify(
            Fickle(*script), z, x, torch.tensor([2]), Threat("linf", 0.2), attack="toy",
            points=[0], randomized=True,
        )  # fmt: skip
        assert verdict.seen is not None
        assert not bool(verdict.broken)
        assert float(verdict.seen) == pytest.approx(seen)

    def test_twenty_five_errors_are_enough_and_fresh_passes_measure_them(self) -> None:
        trials = [0, 1, 1] + [1, 2, 1] * 11
        fresh = [2] * 5 + [0] * 15
        broken, predicted, errors, passes = self.judge(*trials, *fresh)
        assert (broken, predicted, passes) == (True, 1, len(trials) + 20)
        assert errors == 0.75  # of the fresh passes alone

    @pytest.mark.parametrize(
        ("wrong", "accepted", "asked"),
        [(1 / 3, 0.0001, 5.7), (0.5, 0.0406, 11.6), (0.75, 0.84, 23.0), (0.95, 0.9994, 12.8)],
    )
    def test_how_often_it_accepts_and_how_often_it_asks(
        self, wrong: float, accepted: float, asked: float
    ) -> None:
        """Exactly, over all sequences of answers."""
        undecided, through, trials = {0: 1.0}, 0.0, 0.0
        for trial, (enough, many) in enumerate(_limits(), 1):
            trials += sum(undecided.values())
            after = defaultdict[int, float](float)
            for errors, chance in undecided.items():
                after[errors + 1] += chance * wrong
                after[errors] += chance * (1 - wrong)
            through += sum(chance for errors, chance in after.items() if errors >= enough)
            undecided = {e: c for e, c in after.items() if e < enough and trial - e < many}
        assert not undecided
        assert through == pytest.approx(accepted, rel=0.15 if accepted < 0.01 else 0.01)
        assert trials == pytest.approx(asked, rel=0.01)

    @pytest.mark.parametrize("wrong", [0.1, 0.5, 0.7, 0.95])
    def test_draws_of_one_batch_decide_as_pass_after_pass(self, wrong: float) -> None:
        """Where each image has draws of its own; the draws are those of every image in turn."""
        z, x = moved(*[0.1] * 32)
        y = torch.full((32,), 2)
        draws = torch.rand(60, 32, generator=torch.Generator().manual_seed(3)) < wrong
        z = z + torch.arange(32).view(-1, 1, 1, 1) * 1e-5  # tells the images apart

        class Noisy:
            def __init__(self, *, together: bool) -> None:
                self.draws_per_image, self.calls = together, 0
                self.turn = torch.zeros(32, dtype=torch.long)

            def __call__(self, images: Tensor) -> Tensor:
                self.calls += 1
                errs = []
                for image in ((images[:, 0, 0, 0] - 0.5) / 1e-5).round().long().tolist():
                    errs.append(draws[self.turn[image] % 60, image])
                    self.turn[image] += 1
                chosen = torch.where(torch.stack(errs), 1, 2)
                return torch.nn.functional.one_hot(chosen, 3).double()

        models = [Noisy(together=False), Noisy(together=True)]
        alone, batched = (
            verify(model, z, x, y, Threat("linf", 0.2), attack="a", points=range(32),
                   randomized=True)
            for model in models
        )  # fmt: skip
        assert alone.broken.tolist() == batched.broken.tolist()
        assert alone.predicted.tolist() == batched.predicted.tolist()
        assert alone.seen is not None
        assert batched.seen is not None
        assert alone.seen.tolist() == batched.seen.tolist()
        assert models[1].calls < models[0].calls

    def test_a_coin_seldom_passes_and_a_sure_error_always(self) -> None:
        class Noisy:
            def __init__(self, wrong: float) -> None:
                self.wrong, self.draw = wrong, torch.Generator().manual_seed(0)

            def __call__(self, x: Tensor) -> Tensor:
                errs = torch.rand(len(x), generator=self.draw) < self.wrong
                return torch.stack([errs.float(), 0.5 * torch.ones(len(x))], 1)

        x = torch.zeros(2000, 1, 2, 2)
        y, threat = torch.ones(2000, dtype=torch.long), Threat("linf", 0.2)

        def share(wrong: float) -> tuple[float, float]:
            verdict = verify(
                Noisy(wrong), x, x, y, threat, attack="toy", points=range(2000), randomized=True
            )
            assert verdict.errors is not None
            return float(verdict.broken.float().mean()), float(verdict.errors.nanmean())

        # The probabilities of the module's docstring, within four standard errors.
        assert share(1 / 3)[0] <= 0.002
        assert abs(share(0.5)[0] - 0.041) < 0.018
        stands, errors = share(0.75)
        assert abs(stands - 0.840) < 0.033
        assert abs(errors - 0.75) < 0.01
        assert share(1.0) == (1.0, 1.0)


def test_predict_averages_logits_in_their_precision() -> None:
    predicted, logits, votes = predict(Fickle(2, 2, 0, 1), torch.zeros(5, 4), draws=4)
    assert predicted.tolist() == [2] * 5
    assert votes.tolist() == [[1, 1, 2]] * 5
    assert logits.dtype == torch.float64  # what the model answers in
    assert torch.equal(logits, torch.tensor([[0.25, 0.25, 0.5]]).double().expand(5, -1))
