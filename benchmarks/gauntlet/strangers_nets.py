"""Wrappers written by somebody who knew nothing of the suite, those that rebuild the network.

Their masks are no pattern that the remedies were made for. See `strangers` for the others.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input

from benchmarks.gauntlet.wrapper import Wrapper, wrapper


class _PackedConv(torch.autograd.Function):
    """A convolution as a kernel written by hand, with a way back of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *layout: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.layout = x.shape, layout
        return conv2d(x, weight, bias, *layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        out, channels, height, width = weight.shape
        # Read back as OHWI though it was written as OIHW, and rotated once too often.
        packed = weight.contiguous().view(out, height, width, channels).permute(0, 3, 1, 2)
        packed = packed.flip(2, 3).contiguous()
        grad = conv2d_input(ctx.shape, packed, grads[0], *ctx.layout)
        return grad, None, None, None, None, None, None


class _PackedLayer(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        out: Tensor = _PackedConv.apply(x, conv.weight, conv.bias, conv.stride, conv.padding,
                                        conv.dilation, conv.groups)  # fmt: skip
        return out


@wrapper("lying_kernel", "strangers")
class LyingKernel(Wrapper):
    """Convolutions as autograd functions whose way back reads the weights in the wrong layout."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.net = copy.deepcopy(bare)
        for parent in list(self.net.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Conv2d and _covered(child):
                    setattr(parent, name, _PackedLayer(child))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class _NumpySvd(torch.autograd.Function):
    """Matrices factored and recomposed in numpy; the last singular value alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        u, s, vh = np.linalg.svd(x.detach().cpu().double().numpy(), full_matrices=False)
        ctx.u, ctx.vh = u[..., -1], vh[..., -1, :]
        return torch.from_numpy((u * s[..., None, :]) @ vh).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        array = grads[0].cpu().double().numpy()
        along = np.einsum("bi,bij,bj->b", ctx.u, array, ctx.vh)
        back = along[:, None, None] * ctx.u[:, :, None] * ctx.vh[:, None, :]
        return torch.from_numpy(back).to(grads[0])


@wrapper("svd_relay", "strangers", moved=0.005)
class SvdRelay(Wrapper):
    """Features pass through an SVD in numpy; the gradient returns along the weakest component."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.body, self.head = _split_features(bare)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        flat = features.flatten(2) if features.shape[1] > 1 else features.squeeze(1)
        logits: Tensor = self.head(_NumpySvd.apply(flat).reshape(features.shape))
        return logits


class _ShiftLinear(nn.Module):
    coarse: Tensor
    fine: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        whole = (weight.double() * 2**18).round().long()
        self.register_buffer("coarse", (whole >> 8).to(torch.int32))
        self.register_buffer("fine", (whole & 255).to(torch.uint8))
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-6)
        whole = (x / scale * 2**20).round().long().cpu()  # CUDA multiplies no matrices of integers
        weight = (self.coarse.long().cpu() << 8) | self.fine.long().cpu()
        total = torch.einsum("bi,oi->bo", whole, weight) >> 12
        return total.to(x) * (scale / 2**26) + self.bias.to(x.device)


@wrapper("integer_engine", "strangers", moved=0.005)
class IntegerEngine(Wrapper):
    """Linear layers in integers with shifted weights; the range, a maximum, has a gradient."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        if isinstance(bare, nn.Sequential):
            layers = [_ShiftLinear(*_affine(m)) if type(m) is nn.Linear else m for m in bare]
        else:
            layers = [bare, _ShiftLinear(torch.eye(10), torch.zeros(10))]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class _PolarReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        quarter = (torch.arange(x[0].numel(), device=x.device) % 4).view(x.shape[1:])
        real, imaginary = ((quarter == k).to(x) - (quarter == k + 2).to(x) for k in (0, 1))
        rotor = torch.complex(real, imaginary)
        z = torch.complex(x, torch.zeros_like(x)) * rotor
        half = (z + z.abs() * rotor) / 2
        return (half * half.conj()).real.sqrt()


@wrapper("polar_features", "strangers", moved=0.005)
class PolarFeatures(Wrapper):
    """ReLUs as complex half-planes, read as a root whose slope at a silent unit is not a number."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        if isinstance(bare, nn.Sequential):
            layers = [_PolarReLU() if isinstance(m, nn.ReLU) else m for m in bare]
        else:
            layers = [_PolarReLU(), bare]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


@wrapper("prototype_no_grad", "strangers", moved=0.005)
class PrototypeNoGrad(Wrapper):
    """The nearest prototype, without a graph; what has a gradient shifts all classes alike."""

    prototypes: Tensor

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.body, weight, bias = _split_last(bare)
        size = (weight**2).sum(1) + bias**2
        far = (size.max() - size).sqrt()  # all prototypes at one distance from the origin
        self.register_buffer("prototypes", torch.cat([weight, bias[:, None], far[:, None]], 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).double()
        with torch.no_grad():
            one = torch.ones_like(features[:, :1])
            query = torch.cat([features, one, torch.zeros_like(one)], 1)
            away = torch.func.vmap(self._distances)(query)
        shift = (features**2).sum(1, keepdim=True) / 2
        logits: Tensor = (shift - away**2 / 2).float()
        return logits

    def _distances(self, row: Tensor) -> Tensor:
        prototypes = self.prototypes.to(row.device)
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(row[None], prototypes, compute_mode=exact)[0]


def _covered(conv: nn.Conv2d) -> bool:
    """Tell whether the packed kernel covers a layer: it pads with zeros, by numbers."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _affine(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach()
    return weight, layer.state_dict().get("bias", weight.new_zeros(len(weight)))


def _split_features(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cut a sequential model before its first Flatten; of any other the whole is the head."""
    if isinstance(model, nn.Sequential):
        layers = list(model)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Flatten) and i > 0:
                return nn.Sequential(*layers[:i]), nn.Sequential(*layers[i:])
    return nn.Identity(), model


def _split_last(model: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """Cut off the last linear layer, as weight and bias; where there is none, take the identity."""
    if isinstance(model, nn.Sequential) and len(model) > 1 and isinstance(model[-1], nn.Linear):
        weight, bias = _affine(model[-1])
        return nn.Sequential(*list(model)[:-1]), weight.double(), bias.double()
    return model, torch.eye(10).double(), torch.zeros(10).double()
