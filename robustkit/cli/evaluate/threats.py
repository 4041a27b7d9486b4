"""The threat models of a request: --threat, --eps-grid, or what is usual for the data."""

from __future__ import annotations

from math import prod

from robustkit.cli.evaluate.request import Request
from robustkit.core.text import number
from robustkit.core.threat import NORMS, Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.criterion import in_box, with_criterion
from robustkit.evaluation.eps_grid import descending
from robustkit.leaderboard.grouping import shown_eps
from robustkit.models import checkpoints
from robustkit.registry import datasets, defenses, read_threat, threats


def threats_of_grid(request: Request) -> tuple[Threat, ...]:
    """Return the threat models of `--eps-grid`, the largest first; none where it was not given."""
    if request.eps_grid is None:
        return ()
    if request.minimum_norm:
        raise UsageError(
            "--minimum-norm and --eps-grid exclude each other: the first finds a distance for "
            "every point, and with it the robust accuracy at every eps."
        )
    norm, colon, _ = (request.threat or _usual_threat(request.data)).partition(":")
    if norm in threats:
        raise UsageError(
            f"--eps-grid varies the eps of a norm, and --threat {norm} has none: pick severities, "
            "such as --threat corruption:all@1-3, or bounds, such as --threat style:mean=0.05."
        )
    if request.threat and colon:
        raise UsageError(
            f"--threat {request.threat} names an eps, and --eps-grid names others: give the norm "
            f"alone, --threat {norm}."
        )
    threat = _asked(Threat.parse(f"{norm}:1"), request)
    return tuple(descending(threat, request.eps_grid))


def threat_of(request: Request, data: Dataset) -> Threat:
    """Return the threat model; a norm alone is bounded by the box, where distances are sought."""
    text = request.threat or _default_threat(request, data)
    if not request.minimum_norm or ":" in text:
        return _asked(read_threat(text), request)
    norm = Threat.parse(f"{text}:1").norm
    return _asked(Threat.whole(norm, prod(data.shape), *request.box), request)


def _asked(threat: Threat, request: Request) -> Threat:
    """Return a threat model in the box and under the criterion of a request."""
    return with_criterion(in_box(threat, request.box), request.criterion)


def _default_threat(request: Request, data: Dataset) -> str:
    """Return what is usual for the data, else for the weights that are shipped for them.

    A first look at bundled models of which none was made for the usual eps would say nothing.
    """
    usual = _usual_threat(request.data)
    made = [] if request.models else [_written(text) for text in threats_of_bundled(data)]
    return usual if not made or _written(usual) in made else made[0]


def threats_of_bundled(data: Dataset) -> list[str]:
    """Name the threat models that the weights shipped for the family of `data` were measured under.

    Eps is rounded to six digits: `linf:0.00784314`.
    """
    cards = (c.card for entry in defenses.entries() for c in checkpoints.shipped(entry))
    found = {str(card.measured.get("threat") or "") for card in cards if card.data == data.family}
    return sorted(found - {""})


def _written(text: str) -> str:
    """Write a norm and its eps as people do, so that 0.00784314 is 2/255."""
    norm, colon, eps = text.partition(":")
    return f"{norm}:{shown_eps(number(eps))}" if colon and norm in NORMS else text


def usual_threat(text: str) -> str | None:
    """Return the threat model that is usual for a registered data set, if one is known."""
    name = text.partition("(")[0].strip()
    fact = datasets.entry(name).facts.get("threat") if name in datasets else None
    return str(fact) if fact else None


def _usual_threat(text: str) -> str:
    threat = usual_threat(text)
    if threat is None:
        raise UsageError(
            f"no threat model is usual for {text!r}: name one, such as --threat linf:8/255 "
            "(norm, and eps in units of inputs between 0 and 1)."
        )
    return threat
