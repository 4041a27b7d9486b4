"""Other models that attacks take gradients from, loaded by name: `surrogate='source:NAME'`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustkit.core.types import Images, Logits, Model
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.models.agreement import same_model
from robustkit.models.load import load_model
from robustkit.models.readiness import private_copy
from robustkit.models.surrogates.resolve import SOURCE, WithSurrogates, added_surrogates
from robustkit.record.provenance import weights_digest
from robustkit.search.protocol import surrogate_of
from robustkit.search.suites import LineUp
from robustkit.search.tasks import fresh_tasks

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`


def with_sources(settings: Settings, prepared: Prepared, line: LineUp) -> Prepared:
    """Load the models that attacks of a line-up name as their sources, beside the searched model.

    A source that answers as the model itself does is noted: what it finds is white-box.

    Raises:
        UsageError: for a source that is not known, or does not go with the data or the model, or
            with an attack through it.
    """
    wanted = {surrogate_of(search): None for search in line.searches}
    names = [name for name in wanted if name.startswith(SOURCE)]
    if not names:
        return prepared
    x, added, digests = prepared.sample(), added_surrogates(prepared.tuned.model), dict[str, str]()
    with torch.no_grad():
        own = prepared.model(x).float()
    notes, forwards = list(prepared.tuned.notes), len(x)
    for name in names:
        text = name.removeprefix(SOURCE)
        subject = load_model(text, data=settings.data)
        model = private_copy(subject.model, prepared.device, subject.name)
        theirs = _answer(model, text, x, own, settings)
        forwards += len(x)
        if same_model(theirs, own):
            notes.append(f"the source {text} answers as {settings.name} does: attacks through it "
                         "are white-box")  # fmt: skip
        added[name] = model
        digests[name] = weights_digest(model if isinstance(model, nn.Module) else nn.Identity())[0]
        for search in line.searches:
            if surrogate_of(search) == name and hasattr(search, "through"):
                _try(search, model, x[:1], settings)
                forwards += 1
    tuned = prepared.tuned._replace(
        model=WithSurrogates(prepared.tuned.model, added), notes=tuple(notes)
    )
    spent = prepared.diagnosis.after(forwards, 0)
    return prepared._replace(tuned=tuned, diagnosis=spent, sources=tuple(digests.items()))


def _answer(model: Model, text: str, x: Images, own: Logits, settings: Settings) -> Logits:
    """Pass the sample through a source, and compare its answer with the model's."""
    shape = list(x.shape[1:])
    try:
        with torch.no_grad():
            theirs = model(x).float()
    except RobustkitError as error:
        raise UsageError(f"the source {text}, on {settings.data.name}: {error}") from error
    except Exception as error:  # whatever a foreign model raises on inputs it is not made for
        told = str(error).splitlines()
        raise UsageError(
            f"the source {text} does not take the inputs {shape} of {settings.data.name} "
            f"({type(error).__name__}: {told[0] if told else ''}). Name a source for the same data."
        ) from error
    if theirs.shape != own.shape:
        raise UsageError(
            f"expected a source with {own.shape[1]} classes like {settings.name}, got {text}, "
            f"which answers {list(theirs.shape)} to {len(x)} inputs. Name a source for the same "
            "classes."
        )
    return theirs


def _try(search: Any, model: Model, x: Images, settings: Settings) -> None:
    """Let an attack look at a source once: what it cannot do with it is said before the run."""
    jobs = search.jobs(settings.threat, settings.data.classes)
    point = torch.zeros(1, dtype=torch.long, device=x.device)
    ranked = torch.arange(settings.data.classes, device=x.device)[None]
    tasks = fresh_tasks(x, point, ranked, point, jobs[:1], "", settings.seed)
    with torch.enable_grad():
        query = x.clone().requires_grad_(True)
        search.through(model, search.start(tasks, settings.threat), 0)(query)
