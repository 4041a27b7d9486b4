"""AutoAttack's call, run by robustkit: the same signature, with verified results and a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from robustkit.core.types import Images, Labels
from robustkit.errors import UsageError, unknown
from robustkit.evaluation.evaluate import evaluate
from robustkit.record.adversarial import adversarial_inputs
from robustkit.record.record import Record

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_VERSIONS = ("standard", "plus", "rand")
_ATTACKS = {
    "apgd-ce": "apgd(restarts=5)",
    "apgd-dlr": "apgd(loss=dlr, restarts=5)",
    "apgd-t": "apgd(loss=targeted_dlr, targets=9)",
    "fab": "fab(targets=9)",
    "fab-t": "fab(targets=9)",
    "square": "square(queries=5000)",
}


@dataclass
class AutoAttack:
    """Takes the place of `autoattack.AutoAttack`; change the import and nothing else.

        from robustkit.integrations.autoattack import AutoAttack

        adversary = AutoAttack(model, norm="Linf", eps=8 / 255)
        x_adv = adversary.run_standard_evaluation(x_test, y_test, bs=250)
        adversary.record.robust

    The attacks are those of AutoAttack (`robustkit list suites`: standard, plus, rand); what counts
    is verified on the model itself, and flags tell where the model may have fooled the attacks.

    Differs from AutoAttack: `seed=None` is seed 0, so that a run can be repeated; FAB is targeted
    in every version; `state_path` is a
    folder.

    Attributes:
        model: images [b, c, h, w] in [0, 1] to logits [b, k].
        norm: "Linf", "L2" or "L1"; `eps` in units of the inputs.
        verbose: show progress bars.
        attacks_to_run: with version "custom", names of AutoAttack's or specs of robustkit's.
        version: "standard", "plus", "rand" or "custom".
        log_path: file to which the robust accuracy after each attack is added.
        record: of the latest evaluation, with intervals, flags and the verdict of every point.

    Raises:
        UsageError: for a norm, a version or attacks that are not known, and TensorFlow models.
    """

    model: nn.Module
    norm: str = "Linf"
    eps: float = 0.3
    seed: int | None = None
    verbose: bool = True
    attacks_to_run: Sequence[str] = ()
    version: str = "standard"
    is_tf_model: bool = False
    device: str | torch.device = "auto"
    log_path: Path | str | None = None
    record: Record = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.is_tf_model:
            raise UsageError("is_tf_model: expected a model of PyTorch; export it to ONNX first.")
        if self.norm not in _NORMS:
            raise unknown("norm", self.norm, tuple(_NORMS))
        if self.version not in (*_VERSIONS, "custom"):
            raise unknown("version", self.version, (*_VERSIONS, "custom"))
        if bool(self.attacks_to_run) != (self.version == "custom"):
            raise UsageError(
                "attacks_to_run goes with version='custom', and that version with attacks; got "
                f"version={self.version!r} and {len(self.attacks_to_run)} attacks."
            )

    def run_standard_evaluation(
        self,
        x_orig: Images,
        y_orig: Labels,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | str | None = None,
    ) -> Any:
        """Attack the points; return the adversarial inputs, clean ones where none was found.

        Args:
            x_orig: [n, c, h, w] in [0, 1].
            y_orig: [n].
            bs: points in flight at once.
            return_labels: also return what the model answers to them.
            state_path: folder of the run's evidence, in which it resumes; else none is kept.

        Returns:
            [n, c, h, w], on the device of `x_orig`; with `return_labels` also [n].

        Raises:
            UsageError, RobustkitError: as `robustkit.evaluate`.
        """
        with _folder(state_path) as folder:
            self.record = evaluate(
                self.model, (x_orig, y_orig), f"{_NORMS[self.norm]}:{self.eps}",
                suite=None if self.version == "custom" else self.version,
                attacks=[_spec(name, self.norm) for name in self.attacks_to_run],
                seed=self.seed or 0, device=str(self.device), batch_size=bs, folder=folder,
                save_adversarial=True, progress=self.verbose,
            )  # fmt: skip
            found = adversarial_inputs(folder)
        x_adv = x_orig.detach().clone()
        for point, image in found.items():
            x_adv[point] = image.to(x_adv)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as log:
                log.writelines(f"{line}\n" for line in _lines(self.record))
        return (x_adv, self._answers(x_adv, y_orig, bs)) if return_labels else x_adv

    def _answers(self, x_adv: Images, y: Labels, bs: int) -> Labels:
        """Return the answers [n] to inputs, by the verdicts: those of robust points are right."""
        answers = y.detach().clone()
        status = self.record.points.status
        wrong = [i for i, s in enumerate(status) if s in ("broken", "misclassified")]
        where = next(self.model.parameters(), x_adv).device
        with torch.no_grad():
            for start in range(0, len(wrong), bs):
                rows = torch.tensor(wrong[start : start + bs], device=x_adv.device)
                answers[rows] = self.model(x_adv[rows].to(where)).argmax(1).to(answers)
        return answers


@contextmanager
def _folder(given: Path | str | None) -> Iterator[Path]:
    """Hand out the folder of a run: the given one, or one that goes when the run is over."""
    if given is not None:
        yield Path(given)
        return
    with TemporaryDirectory(prefix="robustkit-") as folder:
        yield Path(folder)


def _lines(record: Record) -> Iterator[str]:
    """Say what AutoAttack's log says: the accuracy, and what is left of it after each attack."""
    yield f"initial accuracy: {record.clean:.2%}"
    broken = 0
    for stage in record.stages:
        broken += stage.broken
        left = record.clean - broken / len(record.points.index)
        yield f"robust accuracy after {stage.attack}: {left:.2%} ({stage.seconds:.1f} s)"
    yield f"robust accuracy: {record.robust:.2%}"


def _spec(name: str, norm: str) -> str:
    spec = _ATTACKS.get(name, name)
    return spec.replace("apgd", "apgd_l1", 1) if norm == "L1" else spec
