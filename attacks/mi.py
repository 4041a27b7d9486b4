"""MI-FGSM and NI-FGSM: steps along accumulated gradients, with or without a look ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustkit.core.threat import Threat
from robustkit.registry import attacks
from robustkit.search.protocol import Reply

from ._transfer import MomentumAttack, State, entry


@attacks.register("mi", white_box=True, cites="arXiv:1710.06081")
@dataclass(frozen=True)
class Mi(MomentumAttack):
    """Ascent with momentum (MI-FGSM, NI-FGSM) for linf and l2, made to transfer.

    Dong et al. 2018, algorithm 1; with `nesterov` Lin et al. 2020 (arXiv:1908.06281), equation 6:
    the gradient is that at x + step_size · eps · decay · g. With `gamma` < 1 the skip gradients of
    Wu et al. 2020 (SGM, arXiv:2002.05990): what comes back through the branch f of a residual sum
    z + f(z) counts gamma times. Differs from the papers: l2 as well, and any query on the way may
    be the success, not only the last.

    Attributes:
        steps: gradient steps of a run.
        step_size: length of a step as a fraction of eps.
        decay: share of the accumulated gradient that is kept.
        gamma: weight of residual branches in the gradient; 1 is the gradient itself.
        surrogate: what to take gradients from: `source:NAME` of another model, a surrogate of the
            model by name; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
        nesterov: look ahead along the momentum.
    """

    nesterov: bool = False

    name: ClassVar[str] = "mi"

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take one step, and look where the next one would lead."""
        state = super().step(state, reply, threat)
        # The entries of g have the size 1 in the mean, those of a step in l2 the root of 1 / n.
        length = self.decay * self.step_size * threat.eps * entry(threat, state.x)
        return state._replace(shift=length * state.momentum) if self.nesterov else state
