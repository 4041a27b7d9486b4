"""Every kind of module that users hand over: evaluated as its function, or refused with a cure."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.record.provenance import weights_digest
from robustkit.record.record import Record


class Net(nn.Module):
    """A small network with a convolution, for the prototypes of `blobs`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> logits [b, 4]."""
        logits: Tensor = self.last(self.first(x).relu().flatten(1))
        return logits


class Outer(nn.Module):
    """The network with something done to its answer."""

    def __init__(self, does: Callable[[Any], Any] = lambda y: y) -> None:
        super().__init__()
        self.net, self.does = net(), does

    def forward(self, x: Tensor) -> Any:
        """[b, 1, 6, 6] -> whatever."""
        return self.does(self.net(x))


class Scaled(Outer):
    """Scales its logits by what a submodule returns, a tensor without axes, as CLIP does."""

    class Scale(nn.Module):
        """One number."""

        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

        def forward(self) -> Tensor:
            """() -> ()."""
            return self.log.exp()

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.Scale()

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> logits [b, 4]."""
        logits: Tensor = self.net(x) * self.scale()
        return logits


class Locked(Outer):
    """Passes one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.other = threading.Lock(), threading.RLock()

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> logits [b, 4]."""
        with self.lock, self.other:
            logits: Tensor = self.net(x)
        return logits


class Cast(Outer):
    """Computes in 16 bits by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> logits [b, 4]."""
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.net(x)
        return logits


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().eval()


X = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
BATCH = torch.export.Dim("batch", min=1)


def exported(model: nn.Module) -> nn.Module:
    made: Any = torch.export.export(model, (X,), dynamic_shapes=({0: BATCH},)).module()
    return made  # type: ignore[no-any-return]


def weight_norm() -> nn.Module:
    made: Any = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        made.last = torch.nn.utils.weight_norm(made.last)
    made(X)
    return made  # type: ignore[no-any-return]


def parametrized() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # branch and bound may break what three steps of APGD do not
        last = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=False))
    return nn.Sequential(net(), last)


def cached() -> nn.Module:
    made: Any = Outer()
    made.answer = made.net(X)  # with its gradient history
    return made  # type: ignore[no-any-return]


def without_warnings(make: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return make()


SAME: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(net()),
    "traced": lambda: torch.jit.trace(net(), X),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(net())),
    "a scripted part": lambda: nn.Sequential(torch.jit.script(net())),
    "exported": lambda: exported(net()),
    "an exported part": lambda: nn.Sequential(exported(net())),
    "torch.fx": lambda: torch.fx.symbolic_trace(net()),
    "DataParallel": lambda: nn.DataParallel(net()),
    "0-dim output": Scaled,
    "locks": Locked,
    "hook-based weight_norm": weight_norm,
    "parametrized weight_norm": parametrized,
    "a cached answer": cached,
    "float64 answers": lambda: Outer(lambda y: y.double()),
}


def run(model: nn.Module, data: Dataset, folder: Path, **options: Any) -> Record:
    return robustkit.evaluate(
        model, data=data, threat="linf:0.1", folder=folder, attacks=["apgd(steps=3)"], n=20,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("certify", [None, "auto"])
@pytest.mark.parametrize("kind", SAME)
def test_is_evaluated_as_its_function(
    kind: str, certify: str | None, blobs: Dataset, tmp_path: Path
) -> None:
    model = without_warnings(SAME[kind])
    plain = model if "parametrized" in kind else net()
    told = run(model, blobs, tmp_path / "a", certify=certify)
    wanted = run(plain, blobs, tmp_path / "b")
    assert told.points.predicted == wanted.points.predicted
    lost = [status in ("broken", "misclassified") for status in told.points.status]
    assert lost == [status in ("broken", "misclassified") for status in wanted.points.status]


def test_16_bits_inside_are_evaluated_and_flagged(blobs: Dataset, tmp_path: Path) -> None:
    assert "piecewise_constant" in {flag.name for flag in run(Cast(), blobs, tmp_path).flags}


@pytest.mark.slow
def test_a_compiled_module_is_evaluated_as_its_function(blobs: Dataset, tmp_path: Path) -> None:
    compiled: Any = torch.compile(net(), backend="eager")
    told, wanted = run(compiled, blobs, tmp_path / "a"), run(net(), blobs, tmp_path / "b")
    assert told.points.status == wanted.points.status


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))


def dynamic() -> nn.Module:
    quantize: Any = torch.ao.quantization.quantize_dynamic
    made: nn.Module = quantize(net(), {nn.Linear}, torch.qint8)
    return made


def generator() -> nn.Module:
    made: Any = Outer()
    made.numbers = (number for number in range(3))
    return made  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (lazy, r"not initialized yet \(1.weight, 1.bias\).*Pass one through it"),
    "meta": (lambda: Net().to("meta"), r"on the device `meta`.*first.weight.*to_empty"),
    "meta in part": (lambda: nn.Sequential(net(), nn.Linear(4, 4, device="meta")), "1.weight"),
    "exported in training mode": (
        lambda: exported(nn.Sequential(net(), nn.Dropout()).train()),
        r"exported in training mode.*aten::dropout.*Call .eval\(\)",
    ),
    "exported with a fixed batch": (
        lambda: torch.export.export(net(), (X,)).module(),
        "Was it exported with a fixed batch.*torch.export.Dim",
    ),
    "scripted in training mode": (
        lambda: torch.jit.script(nn.Sequential(net(), nn.Dropout()).train()),
        r"is in training mode.*1 \(Dropout\)",
    ),
    "dynamic int8": (dynamic, r"quantized dynamically \(last \(.*whole batch.*weights alone"),
    "a generator": (generator, "cannot be copied.*generator"),
    "fewer rows": (lambda: Outer(lambda y: y[:8]), r"got \[8, 4\]. Return one row of logits"),
    "one logit": (lambda: Outer(lambda y: y[:, :1]), "one logit per input, but the data has 4"),
    "a vector": (lambda: Outer(lambda y: y[:, 0]), "one logit per input, but the data has 4"),
    "maps": (lambda: Outer(lambda y: y[:, :, None, None]), r"got \[16, 4, 1, 1\]"),
    "a tuple": (lambda: Outer(lambda y: (y, y)), r"got tuple \(0: \[16, 4\], .*output=KEY"),
    "a dict": (lambda: Outer(lambda y: {"a": y, "b": y}), r"got dict \('a': \[16, 4\], "),
    "an array": (lambda: Outer(lambda y: y.detach().numpy()), "got ndarray"),
    "None": (lambda: Outer(lambda y: None), "got NoneType"),
    "NaN": (lambda: Outer(lambda y: y * torch.nan), "NaN or infinite logits"),
    "complex": (lambda: Outer(lambda y: y.to(torch.complex64)), "real logits.*complex64"),
    "sparse": (lambda: Outer(lambda y: y.to_sparse()), "dense tensor.*sparse_coo"),
    "elsewhere": (lambda: Outer(lambda y: y.to("meta")), "device of its inputs, cpu.*on meta"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_with_the_cure(kind: str, blobs: Dataset, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    model = without_warnings(make)
    with pytest.raises(UsageError, match=message) as told:
        run(model, blobs, tmp_path / "a")
    assert told.value.exit_code == 2


class TestDigest:
    """Two models with other weights have other digests, however the weights are held."""

    @pytest.mark.parametrize("kind", ["scripted", "traced", "frozen", "exported", "dynamic"])
    def test_tells_weights_apart(self, kind: str) -> None:
        def made(shift: float) -> nn.Module:
            model: Any = net()
            with torch.no_grad():
                model.last.weight.add_(shift)
            if kind == "dynamic":
                quantize: Any = torch.ao.quantization.quantize_dynamic
                quantized: nn.Module = quantize(model, {nn.Linear})
                return quantized
            make: dict[str, Callable[[], Any]] = {
                "scripted": lambda: torch.jit.script(model),
                "traced": lambda: torch.jit.trace(model, X),
                "frozen": lambda: torch.jit.freeze(torch.jit.script(model)),
                "exported": lambda: exported(model),
            }
            done: nn.Module = make[kind]()
            return done

        digests = [
            weights_digest(without_warnings(lambda s=s: made(s)))[0]  # type: ignore[misc]
            for s in (0.0, 0.0, 1.0)
        ]
        assert digests[0] == digests[1] != digests[2]
