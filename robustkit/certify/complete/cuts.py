"""Cuts learned from closed subdomains: sets of splits that no counterexample has together.

A subdomain with active splits Z⁺ and inactive splits Z⁻ whose bound is above the target holds no
input that matters, hence Σ_{Z⁺} z − Σ_{Z⁻} z ≤ |Z⁺| − 1 for the signs z ∈ {0, 1} of the ReLUs at
every one that does (BICCOS, Zhou et al. 2024, arXiv:2501.00200). Splits that the bound does not
need are left out first: the fewer, the more of the tree a cut reaches.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Terms(NamedTuple):
    """What the cuts add to the linear form of each row.

    Attributes:
        inputs, outputs: coefficients of the inputs and outputs of ReLUs [b, width].
        constant: [b].
    """

    inputs: Tensor
    outputs: Tensor
    constant: Tensor


class _Values(Protocol):
    """Inputs and outputs of ReLUs [b, width]."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def outputs(self) -> Tensor: ...


class Cuts(NamedTuple):
    """Cuts over the units that at least one of them names.

    Attributes:
        units: [m].
        sign: 1 active, −1 inactive, 0 not in the cut [c, m].
        low, high: the units' intervals where their sign is open, low < 0 < high [m].
    """

    units: Tensor
    sign: Tensor
    low: Tensor
    high: Tensor

    def to(self, dtype: torch.dtype) -> Cuts:
        """Return the cuts in another precision."""
        return Cuts(self.units, *(part.to(dtype) for part in self[1:]))

    def terms(self, weight: Tensor, floor: Tensor, ceiling: Tensor) -> Terms:
        """Return Σ weight · (left side − right side) as a form in inputs v and outputs r of ReLUs.

        An open sign lies between r / high and 1 − (v − r) / low: each is put in where it makes the
        form smaller, so that the sum stays below that of the true signs (the planar relaxation of
        GCP-CROWN, Zhang et al. 2022, arXiv:2208.05740, without its slack variables).

        Args:
            weight: multipliers of the first c cuts [b, c], not negative.
            floor, ceiling: [b, width]: 1, 1 for active units, 0, 0 for inactive ones, else 0, 1.
        """
        sign = self.sign[: weight.shape[1]]
        total = weight @ sign
        on, open_ = floor[:, self.units], (ceiling - floor)[:, self.units]
        up, down = total.clamp_min(0) * open_, (-total).clamp_min(0) * open_
        inputs = torch.zeros_like(floor[:1]).expand(len(weight), -1).clone()
        outputs = torch.zeros_like(inputs)
        inputs[:, self.units] = down / self.low
        outputs[:, self.units] = up / self.high - down / self.low
        limit = sign.clamp_min(0).sum(1) - 1
        return Terms(inputs, outputs, (on * total - down).sum(1) - weight @ limit)

    def slopes(self, weight: Tensor, floor: Tensor, ceiling: Tensor, at: _Values) -> Tensor:
        """Return the derivatives of the form by `weight` [b, c] at values of the ReLUs."""
        sign = self.sign[: weight.shape[1]]
        total = weight @ sign
        on, open_ = floor[:, self.units], (ceiling - floor)[:, self.units]
        v, r = at.inputs[:, self.units], at.outputs[:, self.units]
        least, most = on + open_ * r / self.high, on + open_ * (1 - (v - r) / self.low)
        # Where no cut pulls at a sign, the first one to do so decides which end counts.
        up, down = torch.where(total < 0, most, least), torch.where(total > 0, least, most)
        left = up @ sign.clamp_min(0).t() - down @ (-sign).clamp_min(0).t()
        return left - (sign.clamp_min(0).sum(1) - 1)
