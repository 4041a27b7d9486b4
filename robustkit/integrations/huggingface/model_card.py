"""A record as a model card: the hub's `model-index`, and what a reader needs to trust it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from robustkit.core.optional import library
from robustkit.core.text import clean, slug, with_interval
from robustkit.leaderboard.formats import markdown_text, piped
from robustkit.leaderboard.grouping import shown_threat
from robustkit.record.interval import clean_interval, robust_interval
from robustkit.record.record import Record

EXTRA, TASK = "hub", "image-classification"


def model_card(
    record: Record,
    *,
    name: str | None = None,
    license: str | None = None,
    inputs: str | None = None,
) -> str:
    """Return the text of a model card: metadata of huggingface_hub's making, then Markdown.

    The `model-index` has the metrics `accuracy` (clean), `robust_accuracy` and, where there is one,
    `certified_accuracy`, as fractions; a verdict other than reliable stands in the metric's name.
    Of files only the names are told, not their folders.

    Args:
        name: of the model, instead of the record's.
        license: of the model, by its identifier on the hub, such as "mit".
        inputs: the repository with the adversarial inputs, such as "user/name".

    Raises:
        UsageError: when huggingface_hub is not installed.
    """
    hub: Any = library("huggingface_hub", EXTRA)
    named = clean(name or public(record.defense))
    metadata = hub.ModelCardData(
        model_name=named, eval_results=results(record), license=license, pipeline_tag=TASK,
        metrics=["accuracy"], tags=["adversarial-robustness", "robustkit"],
        datasets=None if inputs is None else [inputs],
    )  # fmt: skip
    text = f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(_body(record, named, inputs)) + "\n"
    return str(
        hub.ModelCard(text)
    )  # read back: huggingface_hub refuses a model-index it cannot use


def results(record: Record) -> list[Any]:
    """Return the accuracies of a record as huggingface_hub's `EvalResult`s.

    Raises:
        UsageError: when huggingface_hub is not installed.
    """
    hub: Any = library("huggingface_hub", EXTRA)
    verdict = "" if record.reliability == "reliable" else f", {record.reliability}"
    facts = {
        "norm": record.threat.kind, "eps": record.threat.eps, "seed": record.seed,
        "suite": record.suite, "attacks": [clean(spec) for spec in record.attacks],
        "points": record.n, "points_digest": record.data.digest, "verdict": record.reliability,
        "flags": [clean(flag.name) for flag in record.flags], "robustkit": record.robustkit,
    }  # fmt: skip
    values: list[tuple[str, str, float, dict[str, Any]]] = [
        ("accuracy", "Clean accuracy", record.clean,
         {"points": record.n, "interval_95": list(clean_interval(record))}),
        ("robust_accuracy", f"Robust accuracy ({threat(record)}{verdict})", record.robust,
         {**facts, "interval_95": list(robust_interval(record)), "bound": "upper"}),
    ]  # fmt: skip
    if record.certified is not None:
        proved = {**facts, "certificate": record.certify, "bound": "lower"}
        values.append(
            ("certified_accuracy", f"Certified accuracy ({threat(record)})", record.certified,
             proved)
        )  # fmt: skip
    data = public(record.data.name)
    return [
        hub.EvalResult(
            task_type=TASK, dataset_type=slug(data), dataset_name=public(record.data.title),
            metric_type=kind, metric_name=title, metric_value=value, metric_args=told,
        )
        for kind, title, value, told in values
    ]  # fmt: skip


def threat(record: Record) -> str:
    """Write the threat model as people do.

    Returns:
        Such as "linf, eps = 8/255".
    """
    return shown_threat(record.threat.kind, record.threat.eps)


def public(name: str) -> str:
    """Return the name of a model or of data without the folders of this machine.

    >>> public("npz:/home/me/points.npz"), public("models/net.py:make@runs/a.pt")
    ('npz:points.npz', 'net.py:make@a.pt')
    >>> public("timm:resnet18"), public("pgd_at(eps=8/255)"), public("hf:user/model")
    ('timm:resnet18', 'pgd_at(eps=8/255)', 'hf:user/model')
    """
    name = clean(name)
    path = r"(?:(?<=^)|(?<=[:@]))(?:[A-Za-z]:)?[^:@()=]*[/\\](?=[^/\\:@()]+(?:$|[:@(]))"
    kept = r"(?:hf|robustbench|timm|torchvision):"
    if re.match(kept, name) and not re.match(rf"{kept}(?:[./~\\]|[A-Za-z]:)", name):
        head, at, tail = name.partition("@")
        return head + at + re.sub(path, "", tail)
    return re.sub(path, "", name)


def _body(record: Record, name: str, inputs: str | None) -> Iterator[str]:
    data = markdown_text(public(record.data.title))
    yield f"# Adversarial robustness of {markdown_text(name)}\n"
    yield (
        f"Measured by robustkit {markdown_text(record.robustkit)} on {record.n} of "
        f"{record.data.total} points of {data}. Every adversarial input was verified by fresh "
        "float32 passes of the model and lies within the threat model.\n"
    )
    yield from (piped(["", "share", "95% interval"]), piped(["---", "---:", "---:"]))
    yield _share("clean", record.clean, clean_interval(record))
    yield _share(f"robust: {threat(record)}", record.robust, robust_interval(record))
    if record.certified is not None:
        proved = f"certified ({record.certify})"
        yield piped([markdown_text(proved), f"{record.certified:.4f}", ""])
    yield (
        f"\nVerdict: **{record.reliability}**. Robust accuracy is an upper bound: another attack "
        "may break more points. A certified share is a lower bound.\n"
    )
    if record.flags:
        yield "## Flags\n"
        for flag in record.flags:
            yield f"- **{markdown_text(flag.name)}**: {markdown_text(flag.message)}"
        yield ""
    yield "## Attacks\n"
    yield (
        f"Suite: {markdown_text(record.suite or 'none')}; seed {record.seed}; "
        f"{record.forwards_per_point:,.0f} forward passes per point.\n"
    )
    yield piped(["attack", "points attacked", "points broken"])
    yield piped(["---", "---:", "---:"])
    for stage in record.stages:
        yield piped([markdown_text(stage.attack), str(stage.entered), str(stage.broken)])
    yield from _evidence(record, inputs)


def _evidence(record: Record, inputs: str | None) -> Iterator[str]:
    yield "\n## Evidence\n"
    yield "- `record.json`: the verdict on every point, its digests and the versions used."
    if inputs is not None:
        yield f"- [{inputs}](https://huggingface.co/datasets/{inputs}): the adversarial inputs."
    yield f"- SHA-256 of the weights: {markdown_text(record.weights.digest)}"
    yield f"- SHA-256 of the points: {markdown_text(record.data.digest)}"
    yield "- To ask the model again: `robustkit verify-record FOLDER --model MODEL`"


def _share(what: str, value: float, interval: tuple[float, float]) -> str:
    share, _, between = with_interval(value, *interval, digits=4).partition(" ")
    return piped([markdown_text(what), share, between])
