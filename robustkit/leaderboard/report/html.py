"""One self-contained HTML file of many records; it opens offline and asks no server for anything.

Names in records are text and nothing else: the templates and `svg` escape them, and the page's own
content security policy admits only the one script and the one style that were written into it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core import files
from robustkit.core.packages import own_version
from robustkit.core.text import clean, clean_lines
from robustkit.leaderboard import formats, rows
from robustkit.leaderboard.published import Published
from robustkit.leaderboard.report import plots, security
from robustkit.leaderboard.report.compare import verdicts
from robustkit.leaderboard.report.gallery import Gallery, GalleryMaker
from robustkit.leaderboard.report.glossary import FLAG_GLOSSARY, WORDS
from robustkit.leaderboard.report.images import data_uri
from robustkit.leaderboard.report.optional import need
from robustkit.leaderboard.report.tables import COLUMNS, tables
from robustkit.leaderboard.report.view import Group, Line, arrange, curves
from robustkit.record.interval import stopped_early
from robustkit.record.record import Record

TITLE = "Robustness report"
MANY = 40  # evaluations: of more, all but the tables is packed, and needs JavaScript
_ASSETS = resources("robustkit.leaderboard.report") / "templates"
_SCRIPTS = ("page.js", "table.js", "compare.js", "start.js")


class Shown(NamedTuple):
    """What the page shows of one record's adversarial inputs: how many, or why none."""

    defense: str
    record: str
    pictures: int
    reason: str


class _Download(NamedTuple):
    """A table to take along."""

    title: str
    name: str
    kind: str
    text: str

    @property
    def id(self) -> str:
        return f"data-{self.name}"

    @property
    def address(self) -> str:
        return f"data:{self.kind};base64,{base64.b64encode(self.text.encode()).decode()}"


def write_page(
    records: Iterable[tuple[Path | str, Record]],
    path: Path | str,
    *,
    title: str = TITLE,
    data_root: Path | None = None,
    data: str | None = None,
    pictures: int = 6,
    published: tuple[Sequence[Published], Sequence[str]] = ((), ()),
    advance: Callable[[str], None] = lambda _: None,
) -> list[Shown]:
    """Write the report of `records`, each with the path it lies at, to the HTML file `path`.

    Args:
        data_root, data: where the clean images of the galleries are; see `GalleryMaker`.
        pictures: broken points shown for each record.
        published: rows to set beside the own ones, and what is left out (`published.load`).
        advance: hears the defense of each record when it has been laid out.

    Raises:
        UsageError: without records, or when the extra `report` is not installed.
        RobustkitError: when the file cannot be written.
    """
    environment = _environment()
    records = list(records)
    groups, maker = arrange(records), GalleryMaker(data_root, data)
    found = tables(groups, published[0])
    shown: list[Shown] = []
    items = {group.id: _items(group, maker, pictures, shown, advance) for group in groups}
    facts: dict[str, Any] = {"columns": COLUMNS, "items": items}
    downloads = _downloads(groups, records)
    packed = {"data-points": _packed(json.dumps(verdicts(groups)))}
    if many := len(records) > MANY:
        more = environment.get_template("more.html")
        told = {t.id: clean_lines(more.render(facts, table=t)) for t in found if t.group}
        packed["data-more"] = _packed(json.dumps(told))
        packed |= {file.id: _packed(file.text) for file in downloads}
    script = "".join((_ASSETS / name).read_text("utf-8") for name in _SCRIPTS)
    style = environment.get_template("style.css").render(facts)
    markup = need("markupsafe").Markup
    flags = {flag.name for group in groups for line in group.runs for flag in line.flags}
    text = environment.get_template("page.html").render(
        facts,
        title=clean(title),
        version=own_version(),
        count=len(records),
        models=sum(len(group.lines) for group in groups),
        tables=found,
        many=many,
        curves=_curves(groups),
        left_out=[clean(name) for name in published[1]],
        glossary=[*WORDS, *(entry for entry in FLAG_GLOSSARY if entry[0] in flags)],
        downloads=downloads,
        packed=packed,
        style=markup(style),
        script=markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
    )
    files.write(clean_lines(text).encode(), Path(path))
    return shown


def _environment() -> Any:
    jinja2 = need("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustkit.leaderboard.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    markup = need("markupsafe").Markup
    environment.filters.update(
        share=lambda value: "–" if value is None else f"{value:.3f}",
        breakable=lambda text: markup("<wbr>").join(_pieces(text)),
        drawn=lambda draw: markup(draw),
    )
    environment.globals.update(bar=lambda line: markup(plots.bar(line)),
                               classes=lambda line: markup(plots.classes(line)))  # fmt: skip
    return environment


def _pieces(text: str) -> list[str]:
    """Cut a name where a line may end: after punctuation."""
    pieces, start = [], 0
    for at, letter in enumerate(text, 1):
        if letter in "_-/.,:=(@" and at < len(text):
            pieces.append(text[start:at])
            start = at
    return [*pieces, text[start:]]


def _items(
    group: Group,
    maker: GalleryMaker,
    pictures: int,
    shown: list[Shown],
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Lay out every run of a group, model by model."""
    often: dict[str, Counter[int]] = {}
    for run in group.runs:
        columns = zip(run.record.points.index, run.record.points.status, strict=True)
        broken = often.setdefault(run.record.data.digest, Counter())
        broken.update(index for index, status in columns if status == "broken")
    items = []
    for line in group.lines:
        for run in line.runs:
            beside = often[run.record.data.digest]
            gallery = maker.gallery(run.record, run.row.record, pictures, beside)
            shown.append(Shown(run.name, run.row.record, len(gallery.pictures), gallery.reason))
            items.append(_item(line, run, gallery))
            advance(run.name)
    return items


def _item(line: Line, run: Line, gallery: Gallery) -> dict[str, Any]:
    row, record = run.row, run.record
    early = stopped_early(record)
    kind = "a confidence sequence, as the run ended early" if early else "Clopper–Pearson"
    beyond = (
        "It does not cover stronger attacks: those can only lower the number."
        if record.corruptions is None
        else "Every variant was tried: on these points the number is exact."
    )
    interval = (
        f"{sum(record.outcomes.values())} of {row.n} points are robust. 95% interval "
        f"{row.robust_low:.3f} to {row.robust_high:.3f} ({kind}): what another sample of {row.n} "
        f"points could have shown. {beyond}"
    )
    if row.audit_bound is not None:
        bound = f"{row.audit_bound:.3f} (95%, by the audit)"
        interval += f" The attacks of the audit would lower it by at most {bound}."
    if row.audit_halving:
        interval += f" To halve that bound would take about {row.audit_halving:,} passes more."
    found = gallery.pictures
    return {
        "model": line,
        "line": run,
        "interval": interval,
        "pictures": [(picture, [data_uri(image) for image in picture.images]) for picture in found],
        "provenance": [*_provenance(run), *([("pictures", gallery.reason)] if not found else [])],
    }


def _provenance(line: Line) -> list[tuple[str, str]]:
    record = line.record
    commit, peak = record.commit, record.device_peak_bytes
    found = {
        "record": line.row.record,
        "started": record.started,
        "data": f"{record.data.title}, {record.n} of {record.data.total} points",
        "digest of the points": record.data.digest,
        "note on the data": record.data.note,
        "digest of the weights": record.weights.digest,
        "parameters": f"{record.weights.parameters:,}",
        "attacks": "; ".join(record.attacks),
        "certificate": record.certify or "none",
        "seed": str(record.seed),
        "candidates not confirmed": str(record.flips),
        "passes": f"{record.forwards:,} forward, {record.backwards:,} backward",
        "seconds": f"{record.seconds:,.1f}",
        "device": record.device,
        "peak of the device's memory": peak and f"{peak / 2**20:,.0f} MiB",
        "commit": commit and f"{commit.hash}{', with changes' if commit.dirty else ''}",
        "versions": ", ".join(f"{name} {value}" for name, value in record.versions.items()),
        "notes": "; ".join(record.notes),
        "arguments": json.dumps(record.arguments, ensure_ascii=False),
    }
    return [(term, clean(value)) for term, value in found.items() if value]


def _curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found = curves(groups)
    families = []
    for norm in dict.fromkeys(curve.norm for curve in found):
        members = [curve for curve in found if curve.norm == norm]
        families.append({"norm": norm, "plot": security.interactive(members), "curves": members})
    return families


def _downloads(
    groups: Sequence[Group], records: Sequence[tuple[Path | str, Record]]
) -> list[_Download]:
    models = rows.frame([line.row for group in groups for line in group.lines])
    found = [
        _Download("CSV, one row per model", "leaderboard.csv", "text/csv", formats.to_csv(models)),
        _Download("LaTeX (booktabs)", "leaderboard.tex", "application/x-tex",
                  formats.to_latex(models)),
        _Download("Markdown", "leaderboard.md", "text/markdown", formats.to_markdown(models)),
        _Download("JSON", "leaderboard.json", "application/json", formats.to_json(models)),
    ]  # fmt: skip
    if len(records) > len(models):
        runs = formats.to_csv(rows.table(records))
        found.append(_Download("CSV, one row per run", "runs.csv", "text/csv", runs))
    return found


def _packed(text: str) -> str:
    """Compress what the browser unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
