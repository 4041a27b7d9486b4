"""The tuned model: as fast as possible, and never the one that decides a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models import half
from robustkit.models.fast_conv import Stem
from robustkit.models.half import Half
from robustkit.models.layer_costs import LayerCosts
from robustkit.models.surrogates.resolve import declared, plain
from robustkit.models.tuning import Tuning, tune
from robustkit.registry import attacks
from robustkit.search.protocol import Tasks
from robustkit.search.query import ask

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BFLOAT16 = Tuning(precision="bfloat16")


class Net(nn.Module):
    """A small network that notes the precision of its layers' inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(512, 3)
        self.seen: dict[str, torch.dtype] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.first(x).relu()).relu().flatten(1)
        self.seen = {"middle": h.dtype}
        answer: Tensor = self.last(h)
        self.seen["last"] = answer.dtype
        return answer

    def surrogates(self) -> dict[str, Any]:
        return {"twice": lambda x: 2 * self(x)}


@pytest.fixture
def net() -> Net:
    return Net().eval().requires_grad_(False)


def test_the_original_is_left_alone(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tuned = tune(net, X, BFLOAT16)
    assert tuned.model is not net
    assert type(net.first) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_cpu_gets_its_layout_and_stems_in_float32(net: Net) -> None:
    tuned = tune(net, X, Tuning())
    assert isinstance(tuned.model, Net)
    assert isinstance(tuned.model.first, Stem)
    assert tuned.model.middle.weight.is_contiguous(memory_format=torch.channels_last)
    assert not tuned.half
    torch.testing.assert_close(tuned.model(X), net(X))
    assert (tuned.forwards, tuned.backwards) == (1, 0)
    assert "channels_last" in tuned.notes[0]
    plain = tune(net, X, Tuning(layout="contiguous")).model
    assert isinstance(plain, Net)
    assert plain.middle.weight.is_contiguous()


def test_tensors_of_other_shapes_keep_their_layout(net: Net) -> None:
    """`Module.to` refuses channels_last where a parameter or a buffer has five axes."""
    net.register_buffer("noise", torch.rand(2, 3, 1, 8, 8))
    tuned = tune(net, X, Tuning()).model
    assert isinstance(tuned, Net)
    assert tuned.middle.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tuned.get_buffer("noise"), net.get_buffer("noise"))


def test_half_precision_spares_the_ends(net: Net) -> None:
    tuned = tune(net, X, BFLOAT16)
    assert tuned.half
    assert isinstance(tuned.model, Half)
    answer = tuned.model(X)
    assert answer.dtype == torch.float32
    body = tuned.model.body
    assert isinstance(body, Net)
    assert body.seen == {"middle": torch.bfloat16, "last": torch.float32}
    torch.testing.assert_close(answer, net(X), atol=0.02, rtol=0.02)
    assert not torch.equal(answer, net(X))
    torch.testing.assert_close(declared(tuned.model)["twice"](X), 2 * answer)


def test_what_16_bits_would_change_too_much_stays_in_float32() -> None:
    class Fine(nn.Module):
        """What counts in the middle is less than bfloat16 can tell from 7."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.last(1e3 * (self.middle(self.first(x.flatten(1))) - 7))
            return answer

    torch.manual_seed(0)
    net = Fine().eval().requires_grad_(False)
    net.middle.weight.mul_(1e-3)
    net.middle.bias.fill_(7.0)
    tuned = tune(net, X, BFLOAT16)
    assert not tuned.half
    assert "float32, since bfloat16 moves the logits" in tuned.notes[0]
    assert tune(net, X, BFLOAT16, randomized=True).half


def test_overflow_is_told() -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    ).requires_grad_(False)
    with torch.no_grad():
        for layer in (net[1], net[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.fill_(1e3)
    tuned = tune(net, X, Tuning(precision="float16"))
    assert not tuned.half
    assert "float32, since float16 overflows" in tuned.notes[0]


def test_a_plain_function_is_called_as_it_is() -> None:
    tuned = tune(lambda x: x.flatten(1)[:, :3], X, BFLOAT16)
    assert not tuned.half
    assert "plain function" in tuned.notes[0]


def test_a_compiler_that_fails_is_told(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    tuned = tune(net, X, Tuning(compiled=True))
    assert "not compiled, since OSError was raised" in tuned.notes[0]
    torch.testing.assert_close(tuned.model(X), net(X))


def test_a_compiled_model_answers_alike(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **_: compiler(m, backend="eager"))
    tuned = tune(net, X, Tuning(compiled=True))
    assert "compiled" in tuned.notes[0]
    assert "not compiled" not in tuned.notes[0]
    torch.testing.assert_close(tuned.model(X), net(X))
    torch._dynamo.reset()


def test_gradients_that_16_bits_would_lose_are_kept() -> None:
    """CE of a point with a margin of 20 nats has a gradient of 1e-9: zero in float16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                        nn.Linear(16, 3)).requires_grad_(False)  # fmt: skip
    last = net[5]
    assert isinstance(last, nn.Linear)
    last.bias.copy_(torch.tensor([20.0, 0.0, 0.0]))
    tuned = tune(net, X, Tuning(precision="float16"))
    assert tuned.half
    zero = torch.zeros(4, dtype=torch.long)
    tasks = Tasks(X, zero, torch.arange(3).expand(4, 3), zero - 1, zero, torch.arange(4), zero)
    search = attacks.build("fgsm")
    state = search.start(tasks, Threat("linf", 0.1))
    assert isinstance(tasks.keys, Keys)
    exact = ask(net, search, state).gradient
    found = ask(tuned.model, search, state, half=True).gradient
    assert exact.abs().max() < 1e-7
    ways = (1e9 * found.flatten(1), 1e9 * exact.flatten(1))
    cosine = nn.functional.cosine_similarity(*ways)
    assert cosine.min() > 0.99
    lost = ask(tuned.model, search, state).gradient
    assert lost.abs().max() == 0


def test_low_precision_never_decides(blobs: Dataset, tmp_path: Path) -> None:
    """The verdicts are the original's: what only the 16-bit model is fooled by does not count."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(),
                        nn.Linear(16, 4)).eval()  # fmt: skip
    record = evaluate(
        net, name="net", data=blobs, threat=Threat("linf", 0.02), folder=tmp_path,
        attacks=["pgd(steps=10)"], tuning=BFLOAT16,
    )  # fmt: skip
    from robustkit import adversarial_inputs

    found = adversarial_inputs(tmp_path)
    broken = [p for p, status in zip(record.points.index, record.points.status, strict=True)
             if status == "broken"]  # fmt: skip
    assert sorted(found) == sorted(broken)
    for point, z in found.items():
        assert int(net(z[None]).argmax()) != int(blobs.labels[point])
    assert any("bfloat16" in note for note in record.notes)


def _wide() -> nn.Module:
    """Two million multiply-adds between the first and the last layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 2048),
                        nn.ReLU(), nn.Linear(2048, 3))  # fmt: skip
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("units", [False, True])
def test_a_cpu_with_matrix_units_searches_in_bfloat16_where_it_pays(
    units: bool, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "matrix_units", lambda: units)
    wide = _wide()
    assert not tune(wide, X, Tuning()).half
    monkeypatch.setattr(half, "_PAYS", 2_000_000)
    tuned = tune(wide, X, Tuning())
    assert tuned.half == units
    assert ("bfloat16" in "".join(tuned.notes)) == units
    assert not tune(net, X, Tuning()).half
    assert not tune(wide, X, Tuning(precision="float32")).half
    assert not tune(wide, X, Tuning(), randomized=True).half


@pytest.mark.parametrize(("work", "kind"), [(5_000_000, torch.bfloat16), (4_999_999, None)])
def test_it_pays_from_five_million_multiply_adds_between_the_edges(
    work: int, kind: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "matrix_units", lambda: True)
    costs = LayerCosts(0, [("first", 10**9), ("middle", work), ("last", 10**9)])
    assert half.chosen("auto", "cpu", costs, randomized=False) == kind
    assert half.chosen("auto", "cpu", costs, randomized=True) is None


def test_the_weights_of_16_bits_are_cast_once_and_the_original_is_at_hand() -> None:
    wide = _wide()
    tuned = tune(wide, X, BFLOAT16)
    assert isinstance(tuned.model, Half)
    assert isinstance(tuned.model.body, nn.Sequential)
    assert [layer.weight.dtype for layer in tuned.model.body if isinstance(layer, nn.Linear)] == [
        torch.float32, torch.bfloat16, torch.float32,
    ]  # fmt: skip
    torch.testing.assert_close(plain(tuned.model)(X), wide(X))


def test_a_precision_that_nobody_asked_for_must_answer_nearly_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What bfloat16 moves by 5% is searched in it on demand, and not by itself."""
    monkeypatch.setattr(half, "matrix_units", lambda: True)
    monkeypatch.setattr(half, "_PAYS", 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    net = net.eval().requires_grad_(False)
    assert tune(net, X, Tuning()).half
    middle, last = net[2], net[3]
    assert isinstance(middle, nn.Linear)
    assert isinstance(last, nn.Linear)
    middle.bias.fill_(2.0)
    last.weight.sub_(last.weight.mean(1, keepdim=True))
    last.bias.zero_()
    asked, unasked = tune(net, X, BFLOAT16), tune(net, X, Tuning())
    assert asked.half
    assert not unasked.half
    assert "float32, since bfloat16 moves the logits" in unasked.notes[0]
