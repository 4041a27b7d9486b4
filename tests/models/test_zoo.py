"""Models of other libraries, each made on the spot: same answers, clear refusals, no network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robustkit
from robustkit.cli import environment
from robustkit.cli.program import program as main
from robustkit.core.optional import library
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models import zoo
from robustkit.models.checkpoints import read_weights
from robustkit.models.load import load_model
from robustkit.models.zoo.base import no_pickles
from robustkit.verify.diagnostics.probe import examine


def have(*names: str) -> pytest.MarkDecorator:
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


@pytest.fixture(scope="module")
def photos() -> Dataset:
    """Twelve random color images of 32 × 32, ten classes."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    return from_arrays("photos", x, np.arange(12) % 10, classes=10)


@pytest.fixture
def x(photos: Dataset) -> Tensor:
    return photos.fetch(range(12))[0]


class Net(nn.Module):
    """A small network without batch coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        logits: Tensor = self.last(hidden.flatten(1))
        return logits


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net().eval()


def agree(found: nn.Module, wanted: Tensor, x: Tensor) -> None:
    query = x.clone().requires_grad_(True)
    logits = found(query)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits.square().sum(), query)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


def untrained(model: nn.Module) -> bool:
    """Whether the evaluation will flag the model as untrained."""
    flags = examine(model, torch.rand(2, 3, 32, 32), 10, "it").flags
    return "untrained" in [flag.name for flag in flags]


class TestNames:
    def test_every_file_is_a_source(self) -> None:
        assert zoo.prefixes() == [
            "call", "export", "hf", "hub", "onnx", "robustbench", "sklearn", "timm", "torchvision",
            "tower",
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["timm", "timm:", "mine:make", "dir/timm.py:make"])
    def test_other_names_are_not_taken(self, text: str) -> None:
        assert not zoo.is_named(text)

    def test_options_that_cannot_be_read_are_refused(self, photos: Dataset) -> None:
        with pytest.raises(UsageError, match="the options cannot be read"):
            load_model("timm:resnet18(3)", data=photos)

    def test_an_absent_library_has_a_cure(self) -> None:
        with pytest.raises(UsageError, match=r'pip install "robustkit-eval\[onnx\]"'):
            library("no_such_library_at_all", "onnx")

    @pytest.mark.slow
    def test_importing_the_sources_imports_no_library(self) -> None:
        import subprocess

        code = (
            "import sys, robustkit.models.load, robustkit.models.zoo as z, importlib\n"
            "[importlib.import_module(f'robustkit.models.zoo.{p}') for p in z.prefixes()]\n"
            "print(sorted({'timm', 'transformers', 'onnx', 'torchvision', 'robustbench'} "
            "& set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr

    def test_pickles_are_refused_whatever_a_library_asks_for(self, tmp_path: Path) -> None:
        torch.save({"a": Net()}, tmp_path / "w.pt")
        with no_pickles(), pytest.raises(Exception, match=r"[Ww]eights_only|WeightsUnpickler"):
            torch.load(tmp_path / "w.pt", weights_only=False)


@have("timm")
class TestTimm:
    def test_weights_of_a_file_and_the_classes_of_the_data(
        self, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        timm: Any = library("timm", "timm")
        model = timm.create_model("resnet10t", num_classes=10).eval()
        torch.save(model.state_dict(), tmp_path / "w.pt")
        found = load_model("timm:resnet10t", data=photos, weights=tmp_path / "w.pt",
                           mean=(0.5,), std=(0.25,))  # fmt: skip
        agree(found.model, model((x - 0.5) / 0.25), x)
        assert not untrained(found.model)
        own = load_model("timm:resnet10t(normalize=true)", data=photos, weights=tmp_path / "w.pt")
        recipe = model.pretrained_cfg
        mean, std = (torch.tensor(recipe[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        agree(own.model, model((x - mean) / std), x)

    def test_random_weights_are_never_silent(
        self, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        found = load_model("timm:resnet10t(pretrained=false)", data=photos)
        assert untrained(found.model)
        assert any("random weights" in note for note in found.notes)
        again = load_model("timm:resnet10t(pretrained=false)", data=photos)
        assert torch.equal(found.model(x), again.model(x))
        np.savez(tmp_path / "d.npz", x=(x.numpy() * 255).astype("uint8"), y=np.arange(12) % 10)
        arguments = ["evaluate", "timm:resnet10t(pretrained=false)", "--threat", "linf:8/255",
                     "--data", f"npz:{tmp_path / 'd.npz'}", "--attack", "fgsm",
                     "--out", str(tmp_path / "run"), "--json"]  # fmt: skip
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.stderr
        (row,) = json.loads(result.stdout)["rows"]
        assert "untrained" in row["flags"]
        assert "the weights are random" in result.stderr

    def test_pretrained_weights_bring_their_normalization(
        self, photos: Dataset, x: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timm: Any = library("timm", "timm")
        real, requests = timm.create_model, []

        def create(name: str, pretrained: bool, **options: Any) -> nn.Module:
            requests.append(pretrained)
            model: nn.Module = real(name, pretrained=False, **options)
            return model

        monkeypatch.setattr(timm, "create_model", create)
        monkeypatch.setattr("robustkit.models.zoo.timm.hub_fault", str)
        found = load_model("timm:resnet10t(resize=64)", data=photos)
        assert requests == [True]
        resized: Any = found.model
        model = resized.model[1]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
        large = nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True)
        agree(found.model, model((large - mean) / std), x)
        with pytest.raises(UsageError, match="brings its own preprocessing"):
            load_model("timm:resnet10t", data=photos, mean=(0.5,))

    def test_without_a_network_the_error_says_what_helps(
        self, photos: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timm: Any = library("timm", "timm")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr(timm, "create_model", refuse)
        monkeypatch.setattr("robustkit.models.zoo.timm.hub_fault", str)
        with pytest.raises(UsageError, match=r"Name or service.*--weights FILE.*pretrained=false"):
            load_model("timm:resnet10t", data=photos)

    def test_a_hub_that_it_cannot_use_is_named(
        self, photos: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setattr("timm.models._hub._has_hf_hub", False)
        message = r'timm \S+ cannot use huggingface_hub \S+\. Run `pip install "huggingface-hub<1"'
        with pytest.raises(UsageError, match=message):
            load_model("timm:resnet10t", data=photos)
        load_model("timm:resnet10t(pretrained=false)", data=photos)
        (found,) = [finding for finding in environment._extras() if finding.name == "timm"]
        assert found.state == "warning"
        assert found.cure.startswith('Run `pip install "huggingface-hub<1"')

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("timm:resnet18x", "Did you mean 'resnet18'"),
            ("timm:resnet10t(num_classes=3)", "replace the trained head"),
            ("timm:resnet10t(pretrained=maybe)", "expected pretrained as bool"),
            ("timm:resnet10t(pretrained=false, colour=red)", "colour"),
        ],
    )
    def test_what_cannot_be_is_refused(self, text: str, message: str, photos: Dataset) -> None:
        with pytest.raises(UsageError, match=message):
            load_model(text, data=photos)


@have("torchvision")
class TestTorchvision:
    def test_weights_of_a_file(self, photos: Dataset, x: Tensor, tmp_path: Path) -> None:
        models: Any = library("torchvision.models", "torchvision")
        model = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=10).eval()
        torch.save(model.state_dict(), tmp_path / "w.pt")
        found = load_model("torchvision:shufflenet_v2_x0_5", data=photos, weights=tmp_path / "w.pt")
        agree(found.model, model(x), x)

    def test_pretrained_weights_bring_their_normalization(
        self, photos: Dataset, x: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models: Any = library("torchvision.models", "torchvision")
        real = models.get_model

        def get(name: str, weights: Any, **options: Any) -> nn.Module:
            assert str(weights) == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
            model: nn.Module = real(name, weights=None, **options)
            return model

        monkeypatch.setattr(models, "get_model", get)
        found = load_model("torchvision:shufflenet_v2_x0_5", data=photos)
        inner = found.model[1]  # type: ignore[index]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
        agree(found.model, inner((x - mean) / std), x)
        assert found.model(x).shape == (12, 1000)

    def test_random_weights_and_refusals(self, photos: Dataset) -> None:
        found = load_model("torchvision:shufflenet_v2_x0_5(pretrained=false)", data=photos)
        assert untrained(found.model)
        with pytest.raises(UsageError, match="Unknown torchvision model"):
            load_model("torchvision:resnet181", data=photos)


HUBCONF = """
import torch

def tiny(bias=True, noise=0):
    'A linear model.'
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10, bias=bias))

def number():
    return 3
"""


@have("torchvision")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_behind_another_normalization_must_say_so(
    name: str, photos: Dataset, tmp_path: Path
) -> None:
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=rf"{name}\(transform_input=true\).*Say which"):
        load_model(f"torchvision:{name}", data=photos, weights=tmp_path / "w.pt")
    with pytest.raises(UsageError, match="expected a state dict"):
        load_model(
            f"torchvision:{name}(transform_input=true)", data=photos, weights=tmp_path / "w.pt"
        )


class TestHub:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "hubconf.py").write_text(HUBCONF)
        return tmp_path

    def test_an_entry_of_a_folder(
        self, folder: Path, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, bias=False))
        torch.save(model.state_dict(), tmp_path / "w.pt")
        found = load_model(
            f"hub:{folder}:tiny(bias=false)", data=photos, weights=tmp_path / "w.pt", mean=(0.5,)
        )
        agree(found.model, model(x - 0.5), x)

    @pytest.mark.parametrize(
        ("entry", "message"), [("tinny", "Did you mean 'tiny'"), ("number", "made a int")]
    )
    def test_what_is_not_there(
        self, entry: str, message: str, folder: Path, photos: Dataset
    ) -> None:
        with pytest.raises(UsageError, match=message):
            load_model(f"hub:{folder}:{entry}", data=photos)

    def test_code_is_not_downloaded(self, photos: Dataset) -> None:
        with pytest.raises(UsageError, match="clone it first"):
            load_model("hub:pytorch/vision:resnet18", data=photos)


class TestExport:
    def save(self, net: nn.Module, path: Path, **options: Any) -> None:
        program = torch.export.export(net, (torch.rand(2, 3, 32, 32),), **options)
        torch.export.save(program, path)

    def test_a_program_answers_like_its_model(
        self, net: nn.Module, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        self.save(net, tmp_path / "m.pt2", dynamic_shapes=({0: torch.export.Dim("batch")},))
        found = load_model(f"export:{tmp_path / 'm.pt2'}", data=photos, std=(0.5,),
                           trust_code=[tmp_path / "m.pt2"])  # fmt: skip
        agree(found.model, net(x / 0.5), x)
        found.model.eval()

    def test_a_fixed_batch_is_refused(
        self, net: nn.Module, photos: Dataset, tmp_path: Path
    ) -> None:
        self.save(net, tmp_path / "m.pt2")
        with pytest.raises(UsageError, match="Export it with a dynamic batch") as told:
            load_model(f"export:{tmp_path / 'm.pt2'}", data=photos, trust_code=[tmp_path / "m.pt2"])
        cure = str(told.value).split("`")[1]
        x = torch.rand(2, 3, 32, 32)
        file = tmp_path / "n.pt2"
        torch.export.save(eval(cure, {"torch": torch, "model": net, "x": x}), file)
        model = load_model(f"export:{file}", data=photos, trust_code=[file]).model
        assert [len(model(torch.rand(n, 3, 32, 32))) for n in (1, 2, 300)] == [1, 2, 300]

    def test_a_program_in_training_mode_is_refused(
        self, net: nn.Module, photos: Dataset, tmp_path: Path
    ) -> None:
        batch, file = torch.export.Dim("batch", min=1), tmp_path / "m.pt2"
        self.save(net.train(), file, dynamic_shapes=({0: batch},))
        with pytest.raises(UsageError, match=r"exported in training mode.*aten::batch_norm"):
            load_model(f"export:{file}", data=photos, trust_code=[file])

    def test_damaged_and_missing_files(self, photos: Dataset, tmp_path: Path) -> None:
        (tmp_path / "m.pt2").write_bytes(b"nonsense")
        with pytest.raises(UsageError, match="cannot be loaded"):
            load_model(f"export:{tmp_path / 'm.pt2'}", data=photos, trust_code=[tmp_path / "m.pt2"])
        with pytest.raises(UsageError, match="there is no file"):
            load_model(f"export:{tmp_path / 'n.pt2'}", data=photos)
        with pytest.raises(UsageError, match="leave out --weights"):
            load_model("export:m.pt2", data=photos, weights=tmp_path / "w.pt")

    def test_its_code_runs_only_if_the_file_is_named(
        self, net: nn.Module, photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.save(net, tmp_path / "m.pt2", dynamic_shapes=({0: torch.export.Dim("batch")},))
        text = f"export:{tmp_path / 'm.pt2'}"
        opened: list[Path] = []
        plain = torch.export.load

        def kept(path: Path) -> Any:
            opened.append(path)
            return plain(path)

        monkeypatch.setattr(torch.export, "load", kept)
        for others in ([], [tmp_path / "n.pt2"], [tmp_path]):
            with pytest.raises(UsageError, match=r"--trust-code .*m\.pt2"):
                load_model(text, data=photos, trust_code=others)
        assert opened == []
        nested = f"smoothed(base={text!r}, draws=2)"
        with pytest.raises(UsageError, match="--trust-code"):
            load_model(nested, data=photos)
        load_model(nested, data=photos, trust_code=[str(tmp_path / "m.pt2")])
        assert opened == [tmp_path / "m.pt2"]
        with pytest.raises(UsageError, match="--trust-code"):  # trust ends with the call
            load_model(text, data=photos)


@pytest.mark.filterwarnings("ignore")  # PyTorch says that it is such an archive
def test_a_torchscript_archive_is_no_weights_file(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(UsageError, match=r"w\.pt"):
        read_weights(tmp_path / "w.pt")


@have("onnx", "onnx2torch")
class TestOnnx:
    def graph(self, net: Net, path: Path, fault: bool = False, more: int = 0) -> None:
        """Write the network as an ONNX graph, node by node."""
        onnx: Any = library("onnx", "onnx")
        make, array = onnx.helper, onnx.numpy_helper.from_array
        norm: Any = net.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        held = {
            "w": net.first.weight * scale.view(-1, 1, 1, 1),
            "b": net.first.bias * scale + shift,
            "v": net.last.weight.T.contiguous(),
            "c": net.last.bias,
        }
        nodes = [
            make.make_node("Conv", ["x", "w", "b"], ["h"], strides=[4, 4]),
            make.make_node("HardSwish" if fault else "Relu", ["h"], ["r"]),
            make.make_node("Flatten", ["r"], ["f"], axis=1),
            make.make_node("Gemm", ["f", "v", "c"], ["y"]),
        ]
        outputs = [("y", ["batch", 10])]
        if more:  # a second output, and a constant without axes on the way to the first
            nodes[-1].output[0] = "u"
            one = make.make_tensor("one", 1, (), [1.0])
            nodes += [
                make.make_node("Constant", [], ["k"], value=one),
                make.make_node("Mul", ["u", "k"], ["y"]),
                make.make_node("ConstantOfShape", ["n"], ["z"]),
            ]
            held["n"] = torch.tensor([more, 7])
            outputs.append(("z", [None, None]))
        value = make.make_tensor_value_info
        graph = make.make_graph(
            nodes,
            "net",
            [value("x", 1, ["batch", 3, 32, 32])],
            [value(name, 1, shape) for name, shape in outputs],
            [array(tensor.detach().numpy(), name) for name, tensor in held.items()],
        )
        onnx.save(
            make.make_model(graph, opset_imports=[make.make_opsetid("", 15)], ir_version=8), path
        )

    @pytest.mark.parametrize("runtime", [True, False])
    def test_a_graph_answers_like_its_model(
        self, runtime: bool, net: Net, photos: Dataset, x: Tensor, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if runtime:
            pytest.importorskip("onnxruntime")
        else:
            real = importlib.util.find_spec
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else real(n)
            )
        self.graph(net, tmp_path / "m.onnx")
        found = load_model(f"onnx:{tmp_path / 'm.onnx'}", data=photos, mean=(0.5,), std=(0.25,))
        agree(found.model, net((x - 0.5) / 0.25), x)

    def test_the_first_of_several_outputs_is_the_logits(
        self, net: Net, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        self.graph(net, tmp_path / "m.onnx", more=2)
        model = load_model(f"onnx:{tmp_path / 'm.onnx'}", data=photos).model
        agree(model, net(x), x)
        robustkit.evaluate(
            model, data=photos, threat="linf:0.1", folder=tmp_path / "out", attacks=["fgsm"]
        )

    def test_a_graph_that_unpacks_without_bound_is_refused_before_it_does(
        self, net: Net, photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.graph(net, tmp_path / "m.onnx", more=3000)  # 21,000 numbers
        monkeypatch.setattr("robustkit.models.zoo.onnx._MOST", 20_000)
        with pytest.raises(UsageError, match=r"'z' of the graph has the shape \[3000, 7\]"):
            load_model(f"onnx:{tmp_path / 'm.onnx'}", data=photos)

    def test_a_conversion_with_other_outputs_is_refused(
        self, net: Net, photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.graph(net, tmp_path / "m.onnx")
        converter: Any = library("onnx2torch", "onnx")
        monkeypatch.setattr(converter, "convert", lambda graph: Net().eval())
        with pytest.raises(UsageError, match="are not those of the graph"):
            load_model(f"onnx:{tmp_path / 'm.onnx'}", data=photos)

    def test_unknown_operators_and_damaged_files(
        self, net: Net, photos: Dataset, tmp_path: Path
    ) -> None:
        (tmp_path / "d.onnx").write_bytes(b"nonsense")
        with pytest.raises(UsageError, match="cannot be loaded"):
            load_model(f"onnx:{tmp_path / 'd.onnx'}", data=photos)
        with pytest.raises(UsageError, match="there is no file"):
            load_model("onnx:none.onnx", data=photos)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers: Any = library("transformers", "hf")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=40, patch_size=8, num_labels=10,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 40, "width": 40}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    ).save_pretrained(folder)
    return folder


@have("transformers", "torchvision")
class TestHuggingFace:
    def test_it_answers_like_the_model_behind_its_processor(
        self, vit: Path, photos: Dataset, x: Tensor
    ) -> None:
        transformers: Any = library("transformers", "hf")
        found = load_model(f"hf:{vit}", data=photos)
        model = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(vit)
        images = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in x]
        theirs = model(**processor(images=images, return_tensors="pt")).logits
        # The processor rounds the resized image to bytes.
        torch.testing.assert_close(found.model(x), theirs, rtol=0, atol=0.01)
        agree(found.model, found.model(x), x)
        with pytest.raises(UsageError, match="brings its own preprocessing"):
            load_model(f"hf:{vit}", data=photos, std=(0.5,))

    def test_black_and_white_pixels_keep_their_gradient(
        self, vit: Path, photos: Dataset, x: Tensor
    ) -> None:
        model: Any = load_model(f"hf:{vit}", data=photos).model
        for value in (0.0, 1.0):
            query = torch.full_like(x, value).requires_grad_(True)
            (slope,) = torch.autograd.grad(model.prepare(query).sum(), query)
            assert bool((slope > 0).all())

    def test_random_weights_only_when_asked_for(self, vit: Path, photos: Dataset) -> None:
        assert untrained(load_model(f"hf:{vit}(pretrained=false)", data=photos).model)
        assert not untrained(load_model(f"hf:{vit}", data=photos).model)

    def test_a_checkpoint_without_a_head_is_refused(
        self, vit: Path, photos: Dataset, tmp_path: Path
    ) -> None:
        import shutil

        from safetensors.torch import load_file, save_file

        shutil.copytree(vit, tmp_path / "bare")
        weights = tmp_path / "bare" / "model.safetensors"
        state = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
        save_file(state, weights, metadata={"format": "pt"})
        with pytest.raises(UsageError, match="are not in the checkpoint and would be random"):
            load_model(f"hf:{tmp_path / 'bare'}", data=photos)

    def test_pickled_weights_are_refused(self, vit: Path, photos: Dataset, tmp_path: Path) -> None:
        import shutil

        from safetensors.torch import load_file

        shutil.copytree(vit, tmp_path / "old")
        weights = tmp_path / "old" / "model.safetensors"
        torch.save(load_file(weights), tmp_path / "old" / "pytorch_model.bin")
        weights.unlink()
        with pytest.raises(UsageError, match="safetensors"):
            load_model(f"hf:{tmp_path / 'old'}", data=photos)

    def test_a_name_that_is_no_folder_needs_a_network(
        self, photos: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transformers: Any = library("transformers", "hf")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("We couldn't connect to the hub")

        monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", refuse)
        with pytest.raises(UsageError, match=r"couldn't connect.*hf:FOLDER"):
            load_model("hf:someone/vit", data=photos)
