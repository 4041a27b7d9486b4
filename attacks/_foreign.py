"""What each attack of another library takes: the radius, norms, classes, whatever else it needs.

A class that the table does not hold, of another version, is looked at by its signature.
"""

from __future__ import annotations

from typing import NamedTuple

from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError


class Foreign(NamedTuple):
    """One class of another library.

    Attributes:
        norms: in which it can be judged.
        radius: the argument that takes eps, in input units; "" where it seeks the nearest success
            by itself: what it finds counts where it lies inside.
        classes: fewest of a model.
        lacks: why it cannot run; "" where it can.
        distance: whether the library must be told in which norm to be near.
    """

    norms: tuple[Norm, ...]
    radius: str = "eps"
    classes: int = 2
    lacks: str = ""
    distance: bool = False


def check(spec: str, entry: Foreign, threat: Threat, classes: int) -> None:
    """Refuse (a UsageError) what the attack cannot do."""
    if entry.lacks:
        raise UsageError(f"{spec} cannot run here: it {entry.lacks}.")
    if threat.norm not in entry.norms:
        raise UsageError(f"{spec} supports {', '.join(entry.norms)}, got {threat.norm}.")
    if classes < entry.classes:
        raise UsageError(
            f"{spec} fails on models with {classes} classes: it needs {entry.classes}. "
            "Ours are defined for them: robustkit list attacks."
        )


_LINF: tuple[Norm, ...] = ("linf",)
_L2: tuple[Norm, ...] = ("l2",)
_L1: tuple[Norm, ...] = ("l1",)
_L0: tuple[Norm, ...] = ("l0",)
_BOTH: tuple[Norm, ...] = ("linf", "l2")
_THREE: tuple[Norm, ...] = ("linf", "l2", "l1")
_ALL: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")

_BY_EPS = (
    "FGSM BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM "
    "VMIFGSM VNIFGSM SPSA"
)
TORCHATTACKS: dict[str, Foreign] = {
    **{name: Foreign(_LINF) for name in _BY_EPS.split()},
    **{name: Foreign(_LINF, "max_epsilon") for name in ("PIFGSM", "PIFGSMPP")},
    **{name: Foreign(_L2) for name in ("PGDL2", "PGDRSL2")},
    **{name: Foreign(_L2, "") for name in ("CW", "DeepFool")},
    **{name: Foreign(_L0, "") for name in ("JSMA", "SparseFool", "OnePixel", "Pixle")},
    "EADL1": Foreign(_L1, ""),
    "EADEN": Foreign(("l1", "l2"), ""),
    "APGD": Foreign(_BOTH),
    "APGDT": Foreign(_BOTH, classes=4),
    "FAB": Foreign(_BOTH),  # its code for l1 fails: a variable is not set
    "Square": Foreign(_BOTH),
    "AutoAttack": Foreign(_BOTH, classes=4),
    "VANILA": Foreign(_ALL, "", lacks="changes nothing"),
    "GN": Foreign(_ALL, "", lacks="adds noise without a radius"),
    "MultiAttack": Foreign(_ALL, "", lacks="takes other attacks in place of options"),
    "LGV": Foreign(_ALL, "", lacks="takes training data in place of options"),
}

_PLAIN = (
    "ProjectedGradientDescentAttack PGD AdamProjectedGradientDescentAttack AdamPGD "
    "BasicIterativeAttack AdamBasicIterativeAttack MomentumIterativeFastGradientMethod "
    "FastGradientAttack"
)
_NOISE = "AdditiveGaussianNoiseAttack AdditiveUniformNoiseAttack"
_LOOSE = (
    "InversionAttack BinarySearchContrastReductionAttack LinearSearchContrastReductionAttack "
    "GaussianBlurAttack LinearSearchBlendedUniformNoiseAttack PointwiseAttack"
)
_NEAREST_L2 = (
    "DDNAttack L2CarliniWagnerAttack NewtonFoolAttack L2DeepFoolAttack BoundaryAttack "
    "SaltAndPepperNoiseAttack L2FMNAttack L2BrendelBethgeAttack"
)
FOOLBOX: dict[str, Foreign] = {
    **{
        f"{prefix}{name}": Foreign(norms, "epsilons")
        for prefix, norms in (("Linf", _LINF), ("L2", _L2), ("L1", _L1))
        for name in _PLAIN.split()
    },
    **{
        f"L2{kind}{name}": Foreign(_L2, "epsilons")
        for kind in ("", "ClippingAware", "Repeated", "ClippingAwareRepeated")
        for name in _NOISE.split()
    },
    **{
        name: Foreign(_LINF, "epsilons")
        for name in (
            "LinfAdditiveUniformNoiseAttack",
            "LinfRepeatedAdditiveUniformNoiseAttack",
            *("FGSM", "PGD", "MIFGSM", "AdamPGD"),
        )
    },
    **{name: Foreign(_L2, "epsilons") for name in ("FGM", "L2ContrastReductionAttack")},
    "VirtualAdversarialAttack": Foreign(_L2, "epsilons"),
    "SparseL1DescentAttack": Foreign(_L1, "epsilons"),
    "GenAttack": Foreign(_LINF, "epsilons", lacks="takes targets alone, and there are none"),
    **{name: Foreign(_ALL, "", distance=True) for name in _LOOSE.split()},
    "DatasetAttack": Foreign(_ALL, "", lacks="needs other data to draw from", distance=True),
    "BinarizationRefinementAttack": Foreign(
        _ALL, "", lacks="needs adversarial inputs to start from", distance=True
    ),
    **{name: Foreign(_L2, "") for name in _NEAREST_L2.split()},
    "HopSkipJumpAttack": Foreign(_BOTH, ""),
    **{
        name: Foreign(_LINF, "")
        for name in ("LinfDeepFoolAttack", "LInfFMNAttack", "LinfinityBrendelBethgeAttack")
    },
    **{name: Foreign(_L1, "") for name in ("EADAttack", "L1FMNAttack", "L1BrendelBethgeAttack")},
    **{name: Foreign(_L0, "") for name in ("L0FMNAttack", "L0BrendelBethgeAttack")},
    "SpatialAttack": Foreign((), "", lacks="turns and shifts images, which no norm bounds"),
}

AUTOATTACK: dict[str, Foreign] = {
    **{name: Foreign(_THREE) for name in ("apgd-ce", "fab", "fab-t", "square")},
    "apgd-dlr": Foreign(_THREE, classes=3),
    "apgd-t": Foreign(_THREE, classes=4),
    "standard": Foreign(_THREE, classes=4),
    "plus": Foreign(_THREE, classes=4),
    "rand": Foreign(_THREE, classes=3),
}
