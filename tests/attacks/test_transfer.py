"""The attacks made for transfer, beside closed forms and plain implementations of the papers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from scipy import fft
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.rng import uniform
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.preact_resnet import preact_resnet
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.registry import attacks
from robustkit.search.protocol import Job
from robustkit.search.query import ask
from robustkit.search.tasks import fresh_tasks

EPS = 0.05


@pytest.fixture
def source() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(288, 5)
        )
    return net.double().eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return 0.2 + 0.6 * torch.rand(4, 3, 14, 14, generator=torch.Generator().manual_seed(1)).double()


Y = torch.tensor([0, 1, 2, 4])


def begin(search: Any, x: Tensor, threat: Threat) -> Any:
    ranked = torch.arange(5).expand(len(x), -1)
    tasks = fresh_tasks(x, Y[: len(x)], ranked, torch.arange(len(x)), [Job()] * len(x), "", 3)
    return search.start(tasks, threat)


def walk(spec: str, source: nn.Module, x: Tensor, norm: str = "linf") -> Tensor:
    """Return the last query, of a search along `source` whose target no query fools."""
    search, threat = attacks.build(spec), Threat(norm, EPS)  # type: ignore[arg-type]
    target = WithSurrogates(nn.Flatten(), {"s": source})
    state = begin(search, x, threat)
    last = state.query
    while not bool(state.done.all()):
        last = state.query
        state = search.step(state, ask(target, search, state), threat)
    found: Tensor = last
    return found


def slope(source: nn.Module, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_(True)
    loss = F.cross_entropy(source(z).float(), Y[: len(z)], reduction="sum")
    return torch.autograd.grad(loss, z)[0]


def mean_size(g: Tensor) -> Tensor:
    return g.abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mi_and_ni_are_the_loops_of_the_papers(
    nesterov: bool, decay: float, source: nn.Module, x: Tensor
) -> None:
    z, g, alpha = x, torch.zeros_like(x), EPS / 5
    for _ in range(5):
        fresh = slope(source, z + alpha * decay * g if nesterov else z)
        g = decay * g + fresh / mean_size(fresh)
        z = (z + alpha * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    spec = f"mi(steps=5, step_size=0.2, decay={decay}, nesterov={nesterov}, surrogate=s)"
    torch.testing.assert_close(walk(spec, source, x), z)


def test_without_decay_mi_is_plain_pgd_and_in_l2_the_step_is_normalized(
    source: nn.Module, x: Tensor
) -> None:
    for norm in ("linf", "l2"):
        plain = walk("pgd(steps=4, random_start=false, surrogate=s)", source, x, norm)
        found = walk("mi(steps=4, decay=0, surrogate=s)", source, x, norm)
        torch.testing.assert_close(found, plain)


def test_vmi_is_the_loop_of_the_paper(source: nn.Module, x: Tensor) -> None:
    """Neighbors are drawn by query: their number names the stream."""
    state = begin(attacks.build("vmi"), x, Threat("linf", EPS))
    z, g, v, query = x, torch.zeros_like(x), torch.zeros_like(x), 0
    for _ in range(3):
        here, around = slope(source, z), []
        for _ in range(4):
            query += 1
            noise = 2 * uniform(state.keys, x[0].numel(), torch.full((4,), query)).view_as(x) - 1
            around.append(slope(source, z + 1.5 * EPS * noise))
        g = g + (here + v) / mean_size(here + v)
        v = torch.stack(around).mean(0) - here
        z = (z + EPS / 3 * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        query += 1
    found = walk(f"vmi(steps=3, step_size={1 / 3}, neighbors=4, surrogate=s)", source, x)
    torch.testing.assert_close(found, z)


def test_ti_convolves_the_gradient(source: nn.Module, x: Tensor) -> None:
    line = torch.exp(-(torch.linspace(-3, 3, 7).double() ** 2) / 2)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 7, 7)
    g = slope(source, x)
    smooth = F.conv2d(g, kernel, padding=3, groups=3)
    torch.testing.assert_close(attacks.build("ti(kernel=7)").smooth(g), smooth, rtol=1e-6, atol=0)
    assert torch.equal(attacks.build("ti(kernel=1)").smooth(g), g)
    expected = (x + EPS * smooth.sign()).clamp(0, 1)
    found = walk("ti(steps=1, step_size=1, kernel=7, surrogate=s)", source, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "spec",
    ["di(probability=0", "di(probability=1, least=1", "ti(kernel=1", "bsr(blocks=1, angle=0"],
)
def test_with_nothing_to_change_the_attacks_are_mi(spec: str, source: nn.Module, x: Tensor) -> None:
    plain = walk("mi(surrogate=s)", source, x)
    assert torch.equal(walk(f"{spec}, eot=1, surrogate=s)", source, x), plain)


def seen(spec: str, x: Tensor, stream: int = 7) -> tuple[Tensor, Tensor]:
    """Return what the model is shown of `x`, and 4,000 draws that it was made from."""
    search: Any = attacks.build(spec)
    x = x.float()
    state, number = begin(search, x, Threat("linf", EPS)), torch.full((len(x),), stream)
    return search.view(x, state, number), uniform(state.keys, 4000, number)


def test_di_shrinks_and_pads(x: Tensor) -> None:
    x = x.float()
    for stream in range(5):
        shown, draws = seen("di(probability=0.7, least=0.6)", x, stream)
        for row in range(4):
            u, share, top, left = draws[row, :4].tolist()
            side = 8 + int(share * 6)  # int(0.6 · 14) to 13
            above, before = int(top * (15 - side)), int(left * (15 - side))
            small = F.interpolate(x[row : row + 1], (side, side), mode="bilinear")
            rest = 14 - side
            padded = F.pad(small, (before, rest - before, above, rest - above))
            torch.testing.assert_close(shown[row], padded[0] if u < 0.7 else x[row])


def test_bsr_moves_blocks_and_turns_them(x: Tensor) -> None:
    x = x.float()
    moved, _ = seen("bsr(blocks=3, angle=0)", x)
    assert not torch.equal(moved, x)
    assert torch.equal(moved.flatten(2).sort().values, x.flatten(2).sort().values)
    turned, draws = seen("bsr(blocks=1, angle=90)", x)
    for row in range(4):
        a = torch.deg2rad(90 * (2 * draws[row, 5] - 1))  # after the axis, the cuts and the orders
        theta = torch.tensor([[a.cos(), a.sin(), 0], [-a.sin(), a.cos(), 0]])
        grid = F.affine_grid(theta[None], [1, 3, 14, 14], align_corners=False)
        expected = F.grid_sample(x[row : row + 1], grid, align_corners=False)
        torch.testing.assert_close(turned[row], expected[0])


def test_sia_transforms_every_block(x: Tensor) -> None:
    """Block by block, from the same draws."""
    x = x.float()
    kinds = set[int]()
    for stream in range(6):
        shown, draws = seen("sia(blocks=2)", x, stream)
        for row in range(4):
            kinds |= _blocks(x[row], shown[row], draws[row])
    assert kinds == set(range(10))


def _blocks(image: Tensor, shown: Tensor, draws: Tensor) -> set[int]:
    rows, columns, kinds, amounts, kept, noise = draws[:634].split([13, 13, 4, 4, 12, 588])
    cuts = [[0, int(part.argmin()) + 1, 14] for part in (rows, columns)]
    found = set[int]()
    for i in range(2):
        for j in range(2):
            number = 2 * i + j
            place = (slice(None), slice(*cuts[0][i : i + 2]), slice(*cuts[1][j : j + 2]))
            kind, amount = int(10 * kinds[number]), float(amounts[number])
            mask = (kept.view(3, 4)[:, number] >= 0.1) / 0.9
            more = 16 / 255 * (2 * noise.view(3, 14, 14)[place] - 1)
            block = _transformed(image[place], kind, amount, more, mask)
            torch.testing.assert_close(shown[place], block)
            found.add(kind)
    return found


def _transformed(b: Tensor, kind: int, amount: float, noise: Tensor, mask: Tensor) -> Tensor:
    h, w = b.shape[1:]
    if kind == 7:
        small = F.interpolate(b[None], (int(0.8 * h) + 1, int(0.8 * w) + 1), mode="bilinear")
        return F.interpolate(small, (h, w), mode="bilinear")[0]
    if kind == 8:
        spectrum = fft.dctn(b.numpy(), axes=(1, 2), norm="ortho")
        spectrum[:, h - int(0.4 * h) :], spectrum[:, :, w - int(0.4 * w) :] = 0, 0
        return torch.from_numpy(fft.idctn(spectrum, axes=(1, 2), norm="ortho"))
    return [
        b.roll(int(amount * h), 1), b.roll(int(amount * w), 2), b.flip(1), b.flip(2), b.flip(1, 2),
        amount * b, b + noise, b, b, b * mask[:, None, None],
    ][kind]  # fmt: skip


def test_rows_are_shown_the_same_in_any_batch(x: Tensor) -> None:
    for name in ("di", "bsr", "sia"):
        assert torch.equal(seen(name, x[:1])[0][0], seen(name, x)[0][0])


class Residual(nn.Module):
    """head (z + V relu(U z)), z = W x."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.w, self.u, self.v, self.head = (nn.Linear(6, 6).double() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.w(x)
        logits: Tensor = self.head(z + self.v(self.u(z).relu()))
        return logits

    def damped(self, x: Tensor, gamma: float) -> Tensor:
        """The gradient of the sum of the logits, the branch's multiplied by gamma."""
        open_ = (self.u(self.w(x)) > 0).double()
        back = torch.ones(len(x), 6).double() @ self.head.weight
        branch = ((back @ self.v.weight) * open_) @ self.u.weight
        gradient: Tensor = (back + gamma * branch) @ self.w.weight
        return gradient


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_skip_gradients_damp_the_branch(gamma: float) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)).double().requires_grad_(True)
    net: Any = Residual()
    search: Any = attacks.build(f"mi(gamma={gamma})")
    state = begin(search, x.detach()[:4], Threat("linf", 0.1))
    damped = search.through(net, state._replace(shift=torch.zeros(())), 0)
    (found,) = torch.autograd.grad(damped(x).sum(), x)
    torch.testing.assert_close(found, net.damped(x.detach(), gamma))


def test_skip_gradients_tell_branches_from_shortcuts_and_from_members() -> None:

    residual_sums = import_module("robustkit.attacks._skip").residual_sums
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    start = x.view_as(x)
    logits = preact_resnet((3, 16, 16), 4, width=4).eval()(start)
    assert len(list(residual_sums(logits.grad_fn, start.grad_fn))) == 3
    a, b = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2))
    ensemble = a(start) + b(start)
    assert not list(residual_sums(ensemble.grad_fn, start.grad_fn))


def test_what_cannot_be_attacked_is_refused(source: nn.Module, x: Tensor) -> None:
    with pytest.raises(UsageError, match=r"residual branches.*has none"):
        walk("mi(gamma=0.5, surrogate=s)", source, x)
    for name in ("di", "ti", "bsr", "sia"):
        with pytest.raises(UsageError, match=rf"{name} moves the pixels of pictures.*got inputs"):
            begin(attacks.build(name), x.flatten(1), Threat("linf", EPS))
    with pytest.raises(UsageError, match="kernel=4 has no middle"):
        attacks.build("ti(kernel=4)")
    for spec in ("ti(kernel=15)", "bsr(blocks=15)", "sia(blocks=15)"):
        with pytest.raises(UsageError, match="at least 15 pixels a side"):
            begin(attacks.build(spec), x, Threat("linf", EPS))
    assert walk("vmi(steps=1, neighbors=1)", nn.Identity(), x.flatten(1)[:, :5]).shape == (4, 5)


@pytest.mark.parametrize(
    ("name", "options", "spec"),
    [
        ("MIFGSM", {}, "mi"),
        ("NIFGSM", {}, "mi(nesterov=true"),
        ("DIFGSM", {"decay": 1.0, "diversity_prob": 0.0}, "di(probability=0"),
        ("TIFGSM", {"decay": 1.0, "kernel_name": "gaussian", "len_kernel": 5, "diversity_prob": 0},
         "ti(kernel=5"),
    ],
)  # fmt: skip
def test_torchattacks_takes_the_same_path(
    name: str, options: dict[str, Any], spec: str, source: nn.Module, x: Tensor
) -> None:
    library: Any = pytest.importorskip("torchattacks")
    net = nn.Sequential(*(layer.float() for layer in source.children()))
    theirs = getattr(library, name)(net, eps=EPS, alpha=EPS / 10, steps=10, **options)
    theirs.set_device(x.device)
    ours = walk(f"{spec}{', ' if '(' in spec else '('}surrogate=s)", net, x.float())
    torch.testing.assert_close(ours, theirs(x.float(), Y), atol=1e-6, rtol=0)
