"""What models answer with: one logit, entries of dicts and tuples, 16 and 64 bits, replicas."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.errors import UsageError
from robustkit.models.outputs import Output, reading_of
from robustkit.record.record import Record
from robustkit.verify.candidates import predict

X = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Named(NamedTuple):
    """As torchvision's networks with auxiliary heads answer."""

    logits: Tensor
    aux: Tensor


@dataclass
class Fields:
    """As outputs of other libraries."""

    loss: None
    scores: Tensor


class Net(nn.Module):
    """A linear classifier of two classes with something done to its answer."""

    def __init__(self, does: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(2, 16, generator=generator)
        self.w, self.does = nn.Parameter(weights - weights.mean(1, keepdim=True)), does

    def forward(self, x: Tensor) -> Any:
        """[b, 1, 4, 4] -> whatever."""
        return self.does(nn.functional.linear(x.flatten(1), self.w))


Y = Net()(X).argmax(1)


def run(model: Any, folder: Path, **more: Any) -> Record:
    return robustkit.evaluate(model, (X, Y), "linf:0.05", folder=folder, **more)


def truth(eps: float = 0.05) -> float:
    """Robust accuracy of the linear classifier, in closed form: the box is far from most points."""
    net = Net()
    between = (net.w[1] - net.w[0]).detach()
    down, up = (X - (X - eps).clamp_min(0)).flatten(1), ((X + eps).clamp_max(1) - X).flatten(1)
    sign = (2 * Y - 1)[:, None] * between[None]
    worst = (sign * X.flatten(1)).sum(1) - (sign.relu() * down + (-sign).relu() * up).sum(1)
    return float((worst > 0).double().mean())


@pytest.mark.parametrize(
    ("does", "note"),
    [
        (lambda z: z[:, 1:] - z[:, :1], "one logit"),
        (lambda z: z[:, 1] - z[:, 0], "one logit"),
        (lambda z: (z[:, 1] - z[:, 0]).squeeze(), "one logit"),
        (lambda z: {"logits": z, "features": z}, "'logits'"),
        (lambda z: OrderedDict(loss=z.sum(), answer=z), "'answer'"),
        (lambda z: (z, z.sum()), "entry 0"),
        (lambda z: [None, z[:, 1:] - z[:, :1]], "entry 1"),
        (lambda z: Named(z, z), "'logits'"),
        (lambda z: Fields(None, z), "'scores'"),
    ],
    ids=["column", "flat", "squeezed", "dict", "mapping", "tuple", "list", "named", "fields"],
)
def test_every_form_is_read_as_the_same_classifier(
    does: Callable[[Tensor], Any], note: str, tmp_path: Path
) -> None:
    record = run(Net(does), tmp_path)
    assert (record.clean, record.robust) == (1, truth())
    assert 0 < truth() < 1 and any(note in told for told in record.notes)


@pytest.mark.parametrize(
    "does",
    [
        lambda z: z[:, 1:] - z[:, :1],
        lambda z: (z[:, 1:] - z[:, :1]).squeeze(1),
        lambda z: {"logits": z, "loss": None},
    ],
    ids=["column", "flat", "dict"],
)
def test_certificates_are_of_what_was_read(does: Any, tmp_path: Path) -> None:
    assert run(Net(does), tmp_path, certify="crown").certified == truth()  # affine: exact


def test_an_entry_is_named_where_several_could_be_it(tmp_path: Path) -> None:
    net = Net(lambda z: {"first": -z, "second": z})
    with pytest.raises(UsageError, match=r"'first': \[16, 2\], 'second': \[16, 2\].*output=KEY"):
        run(net, tmp_path / "a")
    assert run(Output(net, "second"), tmp_path / "b").robust == truth()
    assert run(Output(Net(lambda z: (-z, z)), 1), tmp_path / "c").robust == truth()
    with pytest.raises(UsageError, match=r"entry 'third'.*'first', 'second'"):
        run(Output(net, "third"), tmp_path / "d")


def test_an_entry_is_an_option_of_the_model_s_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nclass N(torch.nn.Module):\n"
        "    def forward(self, x):\n        z = x.flatten(1)[:, :2]\n        return -z, z\n"
    )
    data = robustkit.data.from_arrays("it", X.numpy(), Y.numpy(), layout="nchw")
    name = f"{tmp_path / 'mine.py'}:N"
    subject = robustkit.load_model(f"{name}(output=1)", data=data)
    assert torch.equal(subject.model(X), X.flatten(1)[:, :2]) and "entry 1" in subject.notes[0]
    with pytest.raises(UsageError, match="the option output alone, got entry"):
        robustkit.load_model(f"{name}(entry=1)", data=data)
    with pytest.raises(UsageError, match=r"output as a key.*got 0\.5"):
        robustkit.load_model(f"{name}(output=1/2)", data=data)


def test_a_probability_is_no_logit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"class 1 follows where it is above 0.*of a sigmoid"):
        run(Net(lambda z: (z[:, 1:] - z[:, :1]).sigmoid()), tmp_path)


def test_one_logit_is_for_two_classes(tmp_path: Path) -> None:
    net = Net(lambda z: z[:, 1])
    with pytest.raises(UsageError, match="returns one logit per input, but the data has 3"):
        robustkit.evaluate(net, (X, Y + 1), "linf:0.05", folder=tmp_path)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_model_keeps_its_precision(kind: torch.dtype, tmp_path: Path) -> None:
    seen = set()

    def note(z: Tensor) -> Tensor:
        seen.add(z.dtype)
        return z

    net = Net(note).to(kind)
    record = run(net, tmp_path)
    assert seen == {kind} and "cast to the precision" in record.notes[0]
    assert abs(record.robust - truth()) <= (0 if kind is torch.float64 else 2 / len(X))


def test_a_model_that_casts_by_itself_gets_float32(tmp_path: Path) -> None:
    class Casting(Net):
        """Takes the mean off in float32, where a cast of the input would lose it."""

        def forward(self, x: Tensor) -> Any:
            """[b, 1, 4, 4] -> [b, 2]."""
            assert x.dtype is torch.float32
            return super().forward((x - 0.5).to(self.w.dtype))

    assert not any("cast" in note for note in run(Casting().bfloat16(), tmp_path).notes)


def test_verdicts_in_float64_see_what_float32_ties() -> None:
    near = torch.tensor([[1.0, 1.0 + 2**-40]], dtype=torch.float64)
    assert predict(lambda x: near.expand(len(x), 2), X[:3]).predicted.tolist() == [1, 1, 1]


def test_replicas_are_evaluated_as_the_module_inside(tmp_path: Path) -> None:
    record = run(nn.DataParallel(Net()), tmp_path)
    assert record.robust == truth() and record.defense == "Net"


def test_single_outputs_are_read_alike_in_batches_of_any_size() -> None:
    column = torch.zeros(3, 1)
    assert reading_of(column, 3) == reading_of(column[:1], 1)
    flat = reading_of(column[:, 0], 3)
    assert flat == reading_of(column[0], 1) == reading_of(column[0, 0], 1)
    assert reading_of(torch.zeros(3, 2), 3) == (None, 0)
    assert reading_of({"a": torch.zeros(3, 2), "b": torch.zeros(3, 5)}, 3) is None
    assert reading_of({"a": torch.zeros(3, dtype=torch.long)}, 3) is None
