"""Loading: every way to name a model, and every way in which that goes wrong."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.architectures import small_cnn
from robustkit.models.checkpoints import Card, beside, read_weights
from robustkit.models.load import bundled, load_model
from robustkit.registry import defenses

SOURCE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10))

def conv(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 28), nn.Flatten(), nn.Linear(width, 10))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(784, 10)

ready = net().eval()
training = net()
harmless = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
number = 7

def needs(depth, *rest, width=3, **more):
    return None

def wrong():
    return [1, 2]

def raises():
    raise ValueError("no luck today")
"""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset("bundled")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "mine.py"
    path.write_text(SOURCE)
    return str(path)


@pytest.fixture
def pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> Iterator[dict[str, nn.Module]]:
    """A third party's pack: two checkpoints of `toy`, and a defense composed of it."""
    folder = tmp_path / "toy_robustkit_pack"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "toy.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from robustkit.models.architectures import small_cnn\n"
        "from robustkit.registry import defenses\n\n"
        "@defenses.register('toy')\n@dataclass(frozen=True)\nclass Toy:\n"
        "    width: int = 2\n    eps: float = 0.1\n"
        "    def network(self, shape, classes):\n"
        "        return small_cnn(shape, classes, self.width)\n\n"
        "@defenses.register('toy_pair')\n@dataclass(frozen=True)\nclass Pair:\n"
        "    def load(self, data):\n"
        "        from robustkit.models.load import load_model\n"
        "        return load_model('toy', data=data).model.train()\n"
    )
    nets: dict[str, nn.Module] = {}
    for name, eps, family in (
        ("a", 0.3, "fashion_mnist"),
        ("b", 0.1, "fashion_mnist"),
        ("c", 0.2, "mnist"),
    ):
        nets[name] = small_cnn((1, 28, 28), 10, 2)
        content = save(nets[name].state_dict())
        (folder / "checkpoints" / f"{name}.safetensors").write_bytes(content)
        card = _card("toy", {"width": 2, "eps": eps}, content, data=family)
        (folder / "checkpoints" / f"{name}.json").write_text(json.dumps(card))
    monkeypatch.syspath_prepend(tmp_path)
    assert "undefended" in defenses
    importlib.import_module("toy_robustkit_pack.toy")
    yield nets
    for name in ("toy", "toy_pair"):
        del defenses._entries[name]
    for module in [name for name in sys.modules if name.startswith("toy_robustkit_pack")]:
        del sys.modules[module]


def _card(
    defense: str, options: dict[str, Any], content: bytes, data: str = "fashion_mnist"
) -> dict[str, Any]:
    return {
        "schema": "robustkit/card/1",
        "defense": defense,
        "options": options,
        "data": data,
        "shape": [1, 28, 28],
        "classes": 10,
        "command": "robustkit train toy",
        "seed": 0,
        "epochs": 1,
        "measured": {"clean": 0.9, "pgd20": 0.5, "n": 1000},
        "sha256": hashlib.sha256(content).hexdigest(),
        "robustkit": "0.1.0",
    }


def _same(model: nn.Module, reference: nn.Module) -> bool:
    ours, theirs = model.state_dict(), reference.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


class TestUserModels:
    @pytest.mark.parametrize("attribute", ["net", "conv", "Net"])
    def test_what_a_function_returns_is_put_in_evaluation_mode(
        self, file: str, data: Dataset, attribute: str
    ) -> None:
        subject = load_model(f"{file}:{attribute}", data=data)
        assert subject.name == f"{file}:{attribute}"
        assert not any(layer.training for layer in subject.model.modules())

    def test_an_instance_is_handed_over_as_it_is(self, file: str, data: Dataset) -> None:
        first = load_model(f"{file}:ready", data=data).model
        assert load_model(f"{file}:ready", data=data).model is first
        assert load_model(f"{file}:harmless", data=data).model.training

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [
            ("training", r"is in training mode.*1 \(Dropout\).*Call \.eval\(\)"),
            ("number", "is a int; expected an nn.Module, or a function without arguments"),
            ("needs", r"needs arguments \(depth\).*Write a small function"),
            ("wrong", r"wrong\(\) returned a list; expected an nn.Module"),
            ("raises", r"raises\(\) fails: ValueError: no luck today"),
            ("nett", "Did you mean 'net'"),
        ],
    )
    def test_what_is_no_model_is_refused(
        self, file: str, data: Dataset, attribute: str, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            load_model(f"{file}:{attribute}", data=data)

    def test_a_text_of_no_known_form_is_refused(self, data: Dataset) -> None:
        with pytest.raises(UsageError, match=r"expected a model, got 'net\.py'.*undefended"):
            load_model("net.py", data=data)

    def test_an_unknown_name_gets_a_suggestion(self, data: Dataset) -> None:
        with pytest.raises(UsageError, match="Unknown defense 'undefnded'"):
            load_model("undefnded", data=data)


class TestWeights:
    @pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
    def test_every_format_gives_the_same_model(
        self, file: str, data: Dataset, tmp_path: Path, name: str
    ) -> None:
        reference = load_model(f"{file}:conv", data=data).model
        path = tmp_path / name
        state = reference.state_dict()
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        loaded = load_model(f"{file}:conv", data=data, weights=path)
        assert _same(loaded.model, reference)
        assert loaded.notes == (f"weights: {path}",)

    @pytest.mark.parametrize(
        "wrappers",
        [["state_dict"], ["model_state_dict"], ["model"], ["net"], ["network"],
         ["model", "state_dict"]],
        ids="/".join,
    )  # fmt: skip
    @pytest.mark.parametrize(
        "prefix",
        ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.",
         "model._orig_mod.net."],
    )  # fmt: skip
    @pytest.mark.parametrize("counted", [False, True])
    def test_wrappers_and_prefixes_are_seen_through(
        self,
        file: str,
        data: Dataset,
        tmp_path: Path,
        wrappers: list[str],
        prefix: str,
        counted: bool,
    ) -> None:
        reference = load_model(f"{file}:conv", data=data).model
        state: Any = {prefix + key: value for key, value in reference.state_dict().items()}
        if counted:  # by AveragedModel
            state = {"n_averaged": torch.tensor(5), **state}
        for wrapper in reversed(wrappers):
            state = {wrapper: state, "epoch": 3}
        torch.save(state, tmp_path / "w.ckpt")
        loaded = load_model(f"{file}:conv", data=data, weights=tmp_path / "w.ckpt")
        assert _same(loaded.model, reference)
        omitted = f"{prefix} and n_averaged" if counted else prefix
        assert f"weights: {tmp_path / 'w.ckpt'} ({omitted} left out of its keys)" in loaded.notes

    def test_prefixes_stay_where_leaving_them_out_does_not_help(
        self, file: str, data: Dataset, tmp_path: Path
    ) -> None:
        state = load_model(f"{file}:conv", data=data).model.state_dict()
        torch.save({f"module.{key}.x": t for key, t in state.items()}, tmp_path / "w.pt")
        with pytest.raises(UsageError, match=r"4 unexpected \(module.0.weight.x"):
            load_model(f"{file}:conv", data=data, weights=tmp_path / "w.pt")

    def test_files_that_unpack_to_more_than_they_hold_are_refused(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(4000)}, tmp_path / "stored.pt")
        with (
            zipfile.ZipFile(tmp_path / "stored.pt") as old,
            zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with pytest.raises(UsageError, match=r"would unpack to .* does not compress"):
            read_weights(tmp_path / "w.pt")
        assert read_weights(tmp_path / "stored.pt")["a"].shape == (4000,)

    @pytest.mark.parametrize("shape", [[2**40], [2**32, 2**32], [2**62, 2]])
    def test_shapes_beyond_the_file_are_refused(self, shape: list[int], tmp_path: Path) -> None:
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
        header = json.dumps({"a": entry}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match="no readable safetensors file"):
            read_weights(tmp_path / "w.safetensors")

    def test_an_instance_of_the_user_keeps_its_own_weights(
        self, file: str, data: Dataset, tmp_path: Path
    ) -> None:
        own = load_model(f"{file}:ready", data=data).model
        other = {key: value + 1 for key, value in own.state_dict().items()}
        save_file(other, tmp_path / "w.safetensors")
        before = {key: value.clone() for key, value in own.state_dict().items()}
        loaded = load_model(f"{file}:ready", data=data, weights=tmp_path / "w.safetensors").model
        assert torch.equal(loaded.state_dict()["2.bias"], other["2.bias"])
        assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())

    def test_a_pickle_is_refused_with_the_cure(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
        with pytest.raises(UsageError, match=r"Linear\), which can run code.*state_dict\(\)"):
            read_weights(tmp_path / "whole.pt")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("w.safetensors", b"not one", "is no readable safetensors file"),
            ("w.pt", b"not one", "is no readable PyTorch file"),
            ("w.pt", b"PK\x03\x04 cut off", "is no readable PyTorch file"),
            ("w.onnx", b"", r"expected a file named \*\.safetensors"),
        ],
    )
    def test_a_damaged_file_is_named(
        self, tmp_path: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_weights(tmp_path / name)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone\.pt does not exist"):
            read_weights(tmp_path / "gone.pt")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({}, "expected a state dict, got an empty dict"),
            ([1], "expected a state dict, got a list"),
            ({"weight": 3}, "expected a state dict of tensors, got a int at 'weight'"),
        ],
    )
    def test_what_is_no_state_dict_is_refused(
        self, tmp_path: Path, value: object, message: str
    ) -> None:
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(UsageError, match=message):
            read_weights(tmp_path / "w.pt")

    def test_every_misfit_is_listed(self, file: str, data: Dataset, tmp_path: Path) -> None:
        state = {"0.weight": torch.zeros(8, 1, 28, 28), "0.bias": torch.zeros(4)}
        save_file({**state, "head": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(UsageError) as error:
            load_model(f"{file}:conv", data=data, weights=tmp_path / "w.safetensors")
        message = str(error.value)
        assert "2 missing (2.weight, 2.bias)" in message
        assert "1 unexpected (head)" in message
        assert "0.weight: expected [4, 1, 28, 28], got [8, 1, 28, 28]" in message


class TestNormalization:
    def test_it_happens_inside_the_model(self, file: str, data: Dataset) -> None:
        plain = load_model(f"{file}:ready", data=data)
        wrapped = load_model(f"{file}:ready", data=data, mean=[0.25], std=[0.5])
        x = torch.rand(3, 1, 28, 28)
        assert torch.allclose(wrapped.model(x), plain.model((x - 0.25) / 0.5), atol=1e-6)
        assert wrapped.notes == ("inputs are normalized: mean 0.25, std 0.5",)

    def test_one_of_the_two_is_enough(self, file: str, data: Dataset) -> None:
        plain = load_model(f"{file}:ready", data=data).model
        wrapped = load_model(f"{file}:ready", data=data, std=[0.5]).model
        x = torch.rand(2, 1, 28, 28)
        assert torch.allclose(wrapped(x), plain(2 * x), atol=1e-6)

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ([0.1, 0.2], None, "--mean: expected 1 finite number, one for each channel, got 0.1"),
            ([float("nan")], None, "--mean: expected 1 finite number"),
            (None, [0.0], "--std: expected positive numbers, got 0"),
        ],
    )
    def test_impossible_statistics_are_refused(
        self,
        file: str,
        data: Dataset,
        mean: list[float] | None,
        std: list[float] | None,
        message: str,
    ) -> None:
        with pytest.raises(UsageError, match=message):
            load_model(f"{file}:ready", data=data, mean=mean, std=std)

    def test_a_registered_defense_needs_none(self, data: Dataset) -> None:
        with pytest.raises(UsageError, match="undefended already normalizes its inputs"):
            load_model("undefended", data=data, mean=[0.5])

    def test_nothing_is_normalized_twice(self, tmp_path: Path, data: Dataset) -> None:
        (tmp_path / "own.py").write_text(
            "from robustkit.models.architectures import small_cnn\n\ndef net():\n"
            "    return small_cnn((1, 28, 28), 10, 2)\n"
        )
        with pytest.raises(UsageError, match="the model already normalizes its inputs"):
            load_model(f"{tmp_path / 'own.py'}:net", data=data, mean=[0.5])


class TestRegistered:
    def test_the_checkpoint_nearest_to_the_defaults_is_taken(
        self, pack: dict[str, nn.Module], data: Dataset
    ) -> None:
        subject = load_model("toy", data=data)
        assert subject.name == "toy"
        assert _same(subject.model, pack["b"])
        assert subject.notes == ("weights: b.safetensors",)
        assert not subject.model.training

    def test_given_options_decide(self, pack: dict[str, nn.Module], data: Dataset) -> None:
        assert _same(load_model("toy(eps=0.3)", data=data).model, pack["a"])
        assert load_model("toy(eps=3/10)", data=data).name == "toy(eps=0.3)"
        assert load_model("toy(eps=0.1, width=2)", data=data).name == "toy"

    def test_bundled_names_load(self, pack: dict[str, nn.Module], data: Dataset) -> None:
        mine = [name for name in bundled(data) if name.startswith("toy")]
        assert mine == ["toy(eps=0.3)", "toy"]
        assert [load_model(name, data=data).name for name in mine] == mine

    def test_what_is_made_against_another_threat_is_bundled_for_that_one_alone(
        self, pack: dict[str, nn.Module], data: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(defenses.entry("toy").facts, "against", "corruption")
        named = {kind: "toy" in bundled(data, kind) for kind in ("", "linf", "corruption")}
        assert named == {"": False, "linf": False, "corruption": True}
        assert load_model("toy", data=data).name == "toy"

    def test_without_a_checkpoint_the_error_says_how_to_make_one(
        self, pack: dict[str, nn.Module], data: Dataset
    ) -> None:
        with pytest.raises(UsageError) as error:
            load_model("toy(eps=0.2)", data=data)
        message = str(error.value)
        assert "no weights are shipped for toy(eps=0.2) on fashion_mnist" in message
        assert "toy(eps=0.2) on mnist" in message
        assert "`robustkit train 'toy(eps=0.2)' --data fashion_mnist --out DIR`" in message
        assert "`--weights DIR/model.safetensors`" in message

    def test_a_damaged_checkpoint_is_never_loaded(
        self, pack: dict[str, nn.Module], data: Dataset, tmp_path: Path
    ) -> None:
        weights = tmp_path / "toy_robustkit_pack" / "checkpoints" / "b.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        with pytest.raises(RobustkitError, match=r"b\.safetensors is damaged"):
            load_model("toy", data=data)

    def test_a_composed_defense_finds_its_own_weights(
        self, pack: dict[str, nn.Module], data: Dataset, tmp_path: Path
    ) -> None:
        subject = load_model("toy_pair", data=data)
        assert _same(subject.model, pack["b"])
        assert not subject.model.training
        save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(UsageError, match="toy_pair takes no weights"):
            load_model("toy_pair", data=data, weights=tmp_path / "w.safetensors")

    def test_the_card_beside_the_weights_gives_the_options(
        self, data: Dataset, tmp_path: Path
    ) -> None:
        weights = _trained(tmp_path, data, width=3)
        subject = load_model("undefended", data=data, weights=weights)
        assert subject.name == "undefended(width=3)"
        with pytest.raises(UsageError, match=r"their card says undefended\(width=3\)"):
            load_model("pgd_at", data=data, weights=weights)
        with pytest.raises(UsageError, match=r"not of undefended\(width=4\)"):
            load_model("undefended(width=4)", data=data, weights=weights)

    def test_a_card_of_other_weights_is_ignored(self, data: Dataset, tmp_path: Path) -> None:
        weights = _trained(tmp_path, data, width=3)
        save_file(small_cnn((1, 28, 28), 10, 5).state_dict(), weights)
        assert beside(weights) is None
        loaded = load_model("undefended(width=5)", data=data, weights=weights)
        assert loaded.name == "undefended(width=5)"

    def test_building_leaves_the_global_random_state_alone(
        self, data: Dataset, tmp_path: Path
    ) -> None:
        weights = _trained(tmp_path, data, width=3)
        before: Tensor = torch.get_rng_state()
        load_model("undefended", data=data, weights=weights)
        assert torch.equal(torch.get_rng_state(), before)

    def test_inputs_that_the_network_cannot_take_are_refused(self, tmp_path: Path) -> None:
        odd = open_dataset("bundled")
        weights = _trained(tmp_path, odd, width=3)
        object.__setattr__(odd, "shape", (2, 28, 28))
        with pytest.raises(UsageError, match=r"cannot be built for inputs \[2, 28, 28\] and 10"):
            load_model("undefended", data=odd, weights=weights)


def _trained(folder: Path, data: Dataset, width: int) -> Path:
    """What `robustkit train` leaves: weights and their card."""
    content = save(small_cnn((1, 28, 28), 10, width).state_dict())
    (folder / "model.safetensors").write_bytes(content)
    card = _card("undefended", {"width": width}, content)
    (folder / "card.json").write_text(json.dumps(card))
    return folder / "model.safetensors"


def test_a_card_is_data_and_imports_nothing(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    content = save(small_cnn((1, 28, 28), 10, 4).state_dict())
    (tmp_path / "model.safetensors").write_bytes(content)
    card = _card("smoothed", {"base": f"{tmp_path / 'mine.py'}:make"}, content)
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, match=r"names a model that may be code: smoothed\(base="):
        load_model("smoothed", data=data, weights=tmp_path / "model.safetensors")
    assert not (tmp_path / "mark").exists()


def test_a_card_survives_writing_and_reading() -> None:
    card = Card.parse(json.dumps(_card("toy", {"eps": 0.1}, b"x")).encode(), "here")
    assert Card.parse(json.dumps(card.plain()).encode(), "there") == card
    assert next(iter(card.plain())) == "schema"


def test_a_card_of_another_schema_is_refused() -> None:
    broken = {**_card("toy", {}, b"x"), "schema": "robustkit/card/2"}
    with pytest.raises(UsageError, match=r"here: expected a card of schema .*error in schema"):
        Card.parse(json.dumps(broken).encode(), "here")
