"""ART's estimators as models and back: the answers and gradients of the real package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.art import ArtEstimator, ArtNetwork, from_art, to_art


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()


class Foreign:
    """An estimator by arrays, without a network of PyTorch that is seen."""

    nb_classes, channels_first, clip_values = 4, False, (0.0, 255.0)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def _images(self, x: Any) -> Tensor:
        return torch.from_numpy(np.moveaxis(x, -1, 1).copy() / np.float32(255))

    def predict(self, x: Any, batch_size: int) -> Any:
        with torch.no_grad():
            return self.net(self._images(x)).numpy()

    def class_gradient(self, x: Any) -> Any:
        images = self._images(x).requires_grad_(True)
        rows = [torch.autograd.grad(self.net(images)[:, k].sum(), images)[0] for k in range(4)]
        return np.moveaxis(torch.stack(rows, 1).numpy() / 255, 2, -1)


class TestArrays:
    def test_answers_and_gradients_are_those_of_the_network(
        self, net: nn.Module, blobs: Dataset
    ) -> None:
        x = blobs.fetch(range(6))[0].requires_grad_(True)
        model = from_art(Foreign(net))
        assert isinstance(model, ArtEstimator)
        weights = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
        (mine,) = torch.autograd.grad((net(x) * weights).sum(), x)
        (theirs,) = torch.autograd.grad((model(x) * weights).sum(), x)
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)

    def test_an_evaluation_says_the_same(
        self, net: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        def status(model: nn.Module, folder: str) -> list[str]:
            labels = net(blobs.fetch(range(10))[0]).argmax(1)
            x = blobs.fetch(range(10))[0]
            record = robustkit.evaluate(
                model, (x, labels), "linf:0.05", attacks=["pgd(steps=5)"], progress=False,
                folder=tmp_path / folder,
            )  # fmt: skip
            return list(record.points.status)

        mine = status(net, "mine")
        assert {"broken", "robust"} <= {s.replace("certified", "robust") for s in mine}
        assert status(from_art(Foreign(net)), "theirs") == mine

    def test_without_gradients_there_is_none(self, net: nn.Module) -> None:
        asked = Foreign(net)
        scores = SimpleNamespace(predict=asked.predict, nb_classes=4, channels_first=False,
                                 clip_values=(0, 255))  # fmt: skip
        x = torch.rand(2, 1, 6, 6, requires_grad=True)
        assert not from_art(scores)(x).requires_grad

    @pytest.mark.parametrize(
        ("changes", "error", "reason"),
        [
            ({"predict": None}, UsageError, "expected a classifier of ART"),
            ({"clip_values": (0, np.array([1.0, 2.0]))}, UsageError, "differ by feature"),
            ({"nb_classes": 7}, RobustkitError, r"answers \[2, 7\]"),
        ],
    )
    def test_what_cannot_be_asked(
        self, net: nn.Module, changes: dict[str, Any], error: type[Exception], reason: str
    ) -> None:
        asked = Foreign(net)
        given = {"predict": asked.predict, "nb_classes": 4, "channels_first": False, **changes}
        with pytest.raises(error, match=reason):
            from_art(SimpleNamespace(**given))(torch.rand(2, 1, 6, 6))


def test_absence_of_art_names_the_extra(
    net: nn.Module, blobs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    monkeypatch.setitem(sys.modules, "art.estimators.classification", None)
    with pytest.raises(UsageError, match=r"robustkit-eval\[art\]"):
        to_art(net, blobs)


@pytest.mark.filterwarnings("ignore")
class TestTheRealOne:
    @pytest.fixture
    def build(self, net: nn.Module) -> Callable[..., Any]:
        pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
        from art.estimators.classification import PyTorchClassifier

        def make(**options: Any) -> Any:
            return PyTorchClassifier(
                model=net, loss=nn.CrossEntropyLoss(), input_shape=(1, 6, 6), nb_classes=4,
                device_type="cpu", **options,
            )  # fmt: skip

        return make

    def agrees(self, estimator: Any, kind: type[nn.Module], factor: float = 1.0) -> None:
        """The model answers as `predict`, and its slopes are those of `class_gradient`."""
        model = from_art(estimator)
        assert type(model) is kind
        x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2))
        array = (x * factor).numpy()
        query = x.clone().requires_grad_(True)
        answers = model(query)
        torch.testing.assert_close(
            answers.detach(), torch.from_numpy(estimator.predict(array)), rtol=1e-4, atol=1e-4
        )
        slopes = torch.from_numpy(estimator.class_gradient(array))[:, 1] * factor
        (found,) = torch.autograd.grad(answers[:, 1].sum(), query)
        torch.testing.assert_close(found, slopes, rtol=1e-3, atol=1e-4)

    def test_a_network_with_mean_and_std(self, build: Callable[..., Any]) -> None:
        options = {"preprocessing": (0.4, 0.3), "clip_values": (0.0, 1.0)}
        self.agrees(build(**options), ArtNetwork)

    def test_inputs_in_bytes(self, build: Callable[..., Any]) -> None:
        options = {"preprocessing": (100.0, 60.0), "clip_values": (0.0, 255.0)}
        self.agrees(build(**options), ArtNetwork, factor=255.0)

    def test_a_defence_of_numpy(self, build: Callable[..., Any]) -> None:
        from art.defences.preprocessor import SpatialSmoothing

        defence = SpatialSmoothing(window_size=3, channels_first=True)
        options = {"preprocessing_defences": [defence], "clip_values": (0.0, 1.0)}
        self.agrees(build(**options), ArtEstimator)

    def test_a_defence_of_pytorch_with_a_gradient_of_its_own(
        self, build: Callable[..., Any]
    ) -> None:
        from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

        class Steps(PreprocessorPyTorch):  # type: ignore[misc]
            def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
                return (x * 8).round() / 8, y

            def estimate_forward(self, x: Tensor, y: Any = None) -> Tensor:
                return x * 3

        model = from_art(build(preprocessing_defences=[Steps(device_type="cpu")]))
        assert isinstance(model, ArtNetwork)
        x = torch.rand(3, 1, 6, 6, requires_grad=True)
        stepped = ((x * 8).round() / 8).detach().requires_grad_(True)
        torch.testing.assert_close(model(x), model.network(stepped))
        (mine,) = torch.autograd.grad(model.network(stepped).sum(), stepped)
        (theirs,) = torch.autograd.grad(model(x).sum(), x)
        torch.testing.assert_close(theirs, 3 * mine)

    def test_a_defence_after_the_model_is_kept(self, build: Callable[..., Any]) -> None:
        from art.defences.postprocessor import ClassLabels

        estimator = build(postprocessing_defences=ClassLabels(), clip_values=(0.0, 1.0))
        answers = from_art(estimator)(torch.rand(3, 1, 6, 6))
        assert set(answers.flatten().tolist()) <= {0.0, 1.0}

    def test_their_attack_on_ours(
        self, build: Callable[..., Any], net: nn.Module, blobs: Dataset
    ) -> None:
        from art.attacks.evasion import FastGradientMethod

        wrapped = to_art(net, blobs)
        x = blobs.fetch(range(8))[0]
        y = net(x).argmax(1)
        found = FastGradientMethod(wrapped, eps=0.1).generate(x.numpy(), np.eye(4)[y.numpy()])
        wanted = robustkit.attack(net, x, y, "fgsm", "linf:0.1")
        broken = net(wanted).argmax(1) != y
        assert bool(broken.any())
        assert torch.equal(net(torch.from_numpy(found)).argmax(1) != y, broken)
