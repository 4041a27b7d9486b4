"""What a run's folder held before: it is resumed, and never overwritten by another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkit.cli.evaluate.request import Request
from robustkit.core import json_files
from robustkit.errors import UsageError

_CERTIFICATE = "auto(share=0.15)"  # where nobody says and nothing was begun


def refuse_other(out: Path, config: dict[str, Any], *, fresh: bool) -> None:
    """Refuse a folder that holds something else than this run."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder.")
    before = previous(out, fresh=fresh)
    if before is None or fresh:
        return
    same = before.get("weights") == config.get("weights")  # normalization is part of them
    for key in {**config, **before}:
        was, now = before.get(key), config.get(key)
        if was != now and not (same and key in ("mean", "std")):
            raise UsageError(
                f"{out} holds another evaluation: {_difference(key, was, now, config)}. "
                "Choose another --out, or start over with --fresh."
            )


def previous(out: Path, *, fresh: bool) -> dict[str, Any] | None:
    """Return the configuration of the run in a folder; None where there is none.

    Args:
        fresh: one that is damaged is none: it will be written anew.
    """
    path = out / "config.json"
    if not path.exists():
        return None
    try:
        found = json_files.read(path)
    except UsageError:
        if fresh and path.is_file():
            return None
        raise
    if not isinstance(found, dict) or not str(found.get("schema")).startswith("robustkit/run/"):
        raise UsageError(f"{path} is not of robustkit: choose a folder of its own for --out.")
    models = found.get("models")
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        raise UsageError(f"{path} is damaged: it names no models. Choose another --out.")
    return found


def _difference(key: str, was: Any, now: Any, config: dict[str, Any]) -> str:
    changes = {"weights": "the weights of {} have changed", "sources": "the file of {} has changed"}
    if key in changes and isinstance(was, list) and isinstance(now, list):
        pairs = zip(config["models"], was, now, strict=False)
        if changed := [name for name, old, new in pairs if old != new]:
            return changes[key].format(", ".join(changed))
    return f"{key} was {_shown(was)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


def certificate(request: Request) -> str | None:
    """Return the certificate to try; the usual one is that of the run which `--out` goes on with.

    The runs of a grid and for distances have no usual one: they would need it at every eps.

    Raises:
        UsageError: for a budget of branch and bound without that.
    """
    budget = {"nodes": request.certify_nodes, "seconds": request.certify_time}
    given = [f"{key}={value:g}" for key, value in budget.items() if value is not None]
    usual = not (request.eps_grid or request.minimum_norm)
    asked = request.certify or ("auto" if given and usual else None)
    if given and asked not in ("auto", "complete"):
        raise UsageError(
            "--certify-time and --certify-nodes are of branch and bound: give --certify complete "
            f"or --certify auto, not {request.certify or 'nothing'}."
        )
    if asked is not None:
        text = f"{asked}({', '.join(given)})" if given else asked
        return None if text == "none" else text
    before = previous(request.out, fresh=request.fresh) if request.out else None
    if before is not None and not request.fresh:
        return before.get("certify")
    return _CERTIFICATE if usual else None
