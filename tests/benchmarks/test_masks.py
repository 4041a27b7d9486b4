"""Published masks: what each computes, and a run of the benchmark at a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from benchmarks.masks import run
from benchmarks.masks.__main__ import main
from benchmarks.masks.families import MASKS
from benchmarks.masks.hidden import Band, MeanSparseNet, Winners, banded
from benchmarks.masks.mask import Masked, mean_probability, one_hot_vote, straight
from benchmarks.masks.objectives import DummyNet, transport
from benchmarks.masks.purifiers import Denoiser, DiffusionNet
from benchmarks.masks.transformations import MovedConv
from robustkit.data.dataset import Dataset, subset
from robustkit.data.open import open_dataset
from robustkit.models.load import load_model
from robustkit.models.protocols import Network, assemble
from robustkit.models.surrogates.resolve import screened
from robustkit.models.training import Step
from robustkit.verify.diagnostics.probe import examine


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset("bundled")


def _worn(name: str, data: Dataset) -> Masked:
    """A mask on untrained networks, as if trained on few points."""
    data = subset(data, range(100))
    torch.manual_seed(0)
    mask = MASKS[name](width=4)
    bare = assemble(cast(Network, mask.adversarial), data)
    learned = assemble(mask, data) if mask.learns else None
    return mask.wrap(bare, learned, data).eval().requires_grad_(False)


@pytest.mark.parametrize("name", MASKS)
def test_masks_answer_point_by_point_and_experts_have_a_gradient(name: str, data: Dataset) -> None:
    masked, (x, _) = _worn(name, data), data.fetch(np.arange(6))
    assert masked(x).shape == (6, 10)
    if not MASKS[name].random:
        torch.testing.assert_close(masked(x)[2:4], masked(x[2:4]))
    for form in masked.experts().values():
        query = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(form(query).square().sum(), query)
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert MASKS[name]().what.endswith(".")


@pytest.mark.parametrize("name", [name for name, mask in MASKS.items() if mask.learns])
def test_objectives_depend_on_the_step_alone(name: str, data: Dataset) -> None:
    mask, (x, y) = MASKS[name](width=4), data.fetch(np.arange(32))
    torch.manual_seed(0)
    net = assemble(mask, data).train()
    losses = []
    for noise in (1, 2):  # of the global generator
        torch.manual_seed(noise)
        drawn = torch.Generator().manual_seed(5)
        losses.append(mask.objective(net, x, y, Step(0.5, drawn)))
    assert losses[0].isfinite()
    assert torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_band_flattens_what_is_near_the_mean() -> None:
    band = Band(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0]]), 0.5)
    f = torch.tensor([[1.9, -1.4], [2.1, -1.6]])
    assert band(f).tolist() == [[1.0, -1.0], f[1].tolist()]


def test_mean_sparse_hides_the_gradient_of_flat_features_alone() -> None:
    linear = nn.Linear(1, 1)
    nn.init.constant_(linear.weight, 3.0)
    nn.init.zeros_(linear.bias)
    net = MeanSparseNet([Band(torch.zeros(1, 1), torch.ones(1, 1), 1.0), linear])
    experts = net.experts()
    for value, masked, bare in ((0.5, 0.0, 1.5), (2.0, 6.0, 6.0)):
        x = torch.tensor([[value]], requires_grad=True)
        assert (net(x).item(), experts["straight"](x).item()) == (masked, masked)
        assert experts["bare"](x).item() == bare
        slopes = [torch.autograd.grad(f(x).sum(), x)[0].item()
                  for f in (net, experts["straight"])]  # fmt: skip
        assert slopes == [0.0 if masked == 0 else 3.0, 3.0]


def test_narrow_bands_are_flagged_and_seen_through(data: Dataset) -> None:
    """The gradient is zero on a tenth of the units although the output moves."""
    bare, (x, _) = load_model("pgd_at", data=data).model, data.fetch(np.arange(200))
    net = MeanSparseNet(banded(bare, x, 0.1)).eval().requires_grad_(False)
    flags = {flag.name for flag in examine(net, x[:16], 10, "mean_sparse").flags}
    assert "jumping_units" in flags
    assert "bpda" in screened(net, x[:16]).models


def test_winners_are_the_largest_share() -> None:
    f = torch.arange(20.0).view(2, 10).flip(1)
    assert torch.equal(Winners(0.3)(f), torch.where(f >= f[:, 2:3], f, 0.0))


def test_a_dummy_counts_as_its_class() -> None:
    net = DummyNet(nn.Identity())
    outputs = torch.tensor([[0.0, 2.0, 3.0, -1.0], [5.0, 2.0, 3.0, 4.0]])
    assert net(outputs).tolist() == [[3.0, 2.0], [5.0, 4.0]]
    shares = outputs.softmax(1)
    together = net.experts()["together"](outputs).softmax(1)
    torch.testing.assert_close(together, shares[:, :2] + shares[:, 2:])


def test_transport_matches_a_batch_to_itself_in_another_order() -> None:
    batch = torch.eye(6)
    assert transport(batch, batch.roll(1, 0), 50).item() == pytest.approx(0, abs=1e-6)
    assert transport(batch[:1], batch[1:2], 5).item() == pytest.approx(1)  # orthogonal


def test_moved_taps_read_moved_pixels() -> None:
    torch.manual_seed(0)
    moved, x = MovedConv(nn.Conv2d(2, 3, 4, stride=2, padding=1)), torch.rand(2, 2, 8, 8)
    conv = moved.conv

    def shifted(rows: int, columns: int) -> Tensor:
        """The convolution of the image read so many pixels further down and right."""
        wide = pad(x, (3, 3, 3, 3)).roll((-rows, -columns), (2, 3))[:, :, 2:-2, 2:-2]
        return conv2d(wide, conv.weight, conv.bias, 2)

    still = torch.zeros(16, 2)
    torch.testing.assert_close(moved.moved(x, still), conv(x))
    down = still + torch.tensor([1.0, 0.0])
    torch.testing.assert_close(moved.moved(x, down), shifted(1, 0))
    half = still + torch.tensor([0.0, -0.5])
    torch.testing.assert_close(moved.moved(x, half), (shifted(0, 0) + shifted(0, -1)) / 2)


def test_votes_and_mean_probabilities() -> None:
    logits = torch.tensor([[[0.0, 1.0]], [[3.0, 0.0]], [[0.0, 2.0]]])
    torch.testing.assert_close(one_hot_vote(logits), torch.tensor([[1 / 3, 2 / 3]]))
    torch.testing.assert_close(mean_probability(logits).exp(), logits.softmax(2).mean(0))


def test_the_expert_leaves_out_what_has_no_gradient(data: Dataset) -> None:
    x, _ = data.fetch(np.arange(1))

    def through(name: str) -> set[str]:
        """How the attacks of one mask's expert are told to take gradients."""
        specs = run.reference(MASKS[name](), _worn(name, data), x)
        return {spec.rstrip(")").rpartition(", ")[2] for spec in specs if spec.startswith("relay")}

    assert through("transformation_vote") == {"surrogate=mean", "surrogate=bare"}
    assert through("dummy_classes") == {"surrogate=together", "decay=0.8"}  # and on itself
    assert through("random_deformation") == {"surrogate=mean", "eot=8"}


def test_diffusion_passes_its_gradient_through_every_step() -> None:
    torch.manual_seed(0)
    denoiser, noise = Denoiser(1, 4), 0.1 * torch.randn(4, 2, 1, 4, 4)
    net = DiffusionNet(nn.Flatten(), denoiser, noise, [0.2, 0.1, 0.05, 0.0])
    x = torch.full((3, 1, 4, 4), 0.5, requires_grad=True)
    (slow,) = torch.autograd.grad(net.draws(x).square().sum(), x)
    step = 1e-2 * torch.randn_like(x)
    with torch.no_grad():
        up, down = (net.draws(x + s * step).double().square().sum() for s in (1, -1))
    assert (up - down).item() == pytest.approx(2 * (slow * step).sum().item(), rel=1e-2)


def test_straight_keeps_the_value_and_takes_the_other_gradient() -> None:
    x = torch.tensor([0.3], requires_grad=True)
    found = straight(x.round(), 2 * x)
    assert found.item() == 0
    assert torch.autograd.grad(found.sum(), x)[0].item() == 2


def test_the_benchmark_runs_and_resumes(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_REFERENCE", ("apgd(steps=5{through})",))
    x, y = data.fetch(np.arange(160))
    np.savez(tmp_path / "few.npz", x=x.numpy(), y=y.numpy())
    line = ["--data", f"npz:{tmp_path / 'few.npz'}", "--out", str(tmp_path), "--n", "4",
            "--width", "2", "--epochs", "1", "--only", "dummy_classes"]  # fmt: skip
    first = CliRunner().invoke(main, [*line, "--columns", "expert"])
    assert first.exit_code == 0, first.output
    assert "targets: not judged" in first.output
    assert "dummy_classes" in first.output
    again = CliRunner().invoke(main, [*line, "--report", "--markdown"])
    assert again.exit_code == 0
    assert "| `dummy_classes` |" in again.output
    other = CliRunner().invoke(main, [*line, "--controls", "all"])
    assert other.exit_code == 2
    assert "--controls 8" in other.output
    checked = CliRunner().invoke(main, [*line, "--only", "", "--report", "--check"])
    assert checked.exit_code == 1
    assert f"not evaluated: {', '.join(MASKS)}" in checked.output


@pytest.mark.parametrize("line", [["--only", "mask"], ["--controls", "abc"], ["--controls", "-1"]])
def test_bad_requests_are_refused(line: list[str], tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["--report", "--out", str(tmp_path), *line])
    assert found.exit_code == 2
    assert "expected" in found.output
