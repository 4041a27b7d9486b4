"""One self-contained HTML file of many records; it opens offline and asks no server for anything.

Names in records are text and nothing else: the templates escape them, plots get them escaped, and
the page's own content security policy admits only the scripts that were written into it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core import files
from robustkit.core.packages import own_version
from robustkit.core.text import clean, clean_lines
from robustkit.leaderboard import formats, rows
from robustkit.leaderboard.report import plots, security
from robustkit.leaderboard.report.figure import Plot
from robustkit.leaderboard.report.gallery import Gallery, GalleryMaker
from robustkit.leaderboard.report.glossary import GLOSSARY
from robustkit.leaderboard.report.images import LARGEST, data_uri
from robustkit.leaderboard.report.optional import need
from robustkit.leaderboard.report.view import Group, Line, arrange, curves
from robustkit.record.interval import stopped_early
from robustkit.record.record import Record

TITLE = "Robustness report"
MANY = 100  # evaluations: of more, details and downloads are packed, and need JavaScript
_ASSETS = resources("robustkit.leaderboard.report") / "templates"


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
    advance: Callable[[str], None] = lambda _: None,
) -> list[Shown]:
    """Write the report of `records`, each with the path it lies at, to the HTML file `path`.

    Args:
        data_root, data: where the clean images of the galleries are; see `GalleryMaker`.
        pictures: broken points shown for each record.
        advance: hears the defense of each record when it has been laid out.

    Raises:
        UsageError: without records, or when the extra `report` is not installed.
        RobustkitError: when the file cannot be written.
    """
    jinja2 = need("jinja2")
    records = list(records)
    groups, maker = arrange(records), GalleryMaker(data_root, data)
    drawn: dict[str, Plot] = {}
    shown: list[Shown] = []
    laid_out = [_group(group, maker, pictures, drawn, shown, advance) for group in groups]
    loader = jinja2.PackageLoader("robustkit.leaderboard.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = jinja2.StrictUndefined
    environment.filters.update(share="{:.3f}".format, percent=lambda share: f"{100 * share:.2f}%")
    script = (_ASSETS / "page.js").read_text("utf-8")
    markup = need("markupsafe").Markup
    facts: dict[str, Any] = {"count": len(records), "groups": laid_out}
    found, downloads = _curves(groups, drawn), _downloads(groups)
    packed = {"data-plots": _packed(json.dumps(drawn))} | _libraries()
    if many := len(records) > MANY:
        details = environment.get_template("evaluations.html").render(facts)
        packed |= {"data-details": _packed(clean_lines(details))}
        packed |= {file.id: _packed(file.text) for file in downloads}
    text = environment.get_template("page.html").render(
        facts,
        title=clean(title),
        version=own_version(),
        many=many,
        curves=found,
        glossary=GLOSSARY,
        downloads=downloads,
        packed=packed,
        style=markup((_ASSETS / "style.css").read_text("utf-8")),
        script=markup(script),
        hashes=[_hash(script)],
    )
    files.write(clean_lines(text).encode(), Path(path))
    return shown


def _group(
    group: Group,
    maker: GalleryMaker,
    pictures: int,
    drawn: dict[str, Plot],
    shown: list[Shown],
    advance: Callable[[str], None],
) -> dict[str, Any]:
    names = {kind: f"{group.id}-{kind}" for kind in ("tradeoff", "outcomes", "costs")}
    for kind, name in names.items():
        drawn[name] = getattr(plots, kind)(group)
    items = []
    for line in group.lines:
        gallery = maker.gallery(line.record, line.row.record, pictures)
        shown.append(Shown(line.name, line.row.record, len(gallery.pictures), gallery.reason))
        drawn[f"{line.id}-classes"] = plots.classes(line)
        items.append(_item(line, gallery))
        advance(line.name)
    front = ", ".join(line.label for line in group.front)
    return {"group": group, "entries": items, "front": front, **names}


def _item(line: Line, gallery: Gallery) -> dict[str, Any]:
    row, record = line.row, line.record
    early = stopped_early(record)
    kind = "a confidence sequence, as the run ended early" if early else "Clopper–Pearson"
    interval = (
        f"{sum(record.outcomes.values())} of {row.n} points are robust. 95% interval "
        f"{row.robust_low:.3f} to {row.robust_high:.3f} ({kind}): what another sample of {row.n} "
        "points could have shown. It does not cover stronger attacks: those can only lower the "
        "number."
    )
    if row.audit_bound is not None:
        bound = f"{row.audit_bound:.3f} (95%, by the audit)"
        interval += f" The full line-up would lower it by at most {bound}."
    addresses = [
        (picture, [data_uri(image) for image in picture.images]) for picture in gallery.pictures
    ]
    return {
        "line": line,
        "interval": interval,
        "worst": clean(row.worst_class_name),
        "suite": clean(row.suite) if row.suite else "attacks by name",
        "classes": f"{line.id}-classes",
        "pictures": addresses,
        "shrunk": any(max(p.images[0].shape[:2]) > LARGEST for p in gallery.pictures),
        "reason": gallery.reason,
        "provenance": _provenance(line),
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


def _curves(groups: Sequence[Group], drawn: dict[str, Plot]) -> list[dict[str, Any]]:
    found = curves(groups)
    families = []
    for norm in dict.fromkeys(curve.norm for curve in found):
        members = [curve for curve in found if curve.norm == norm]
        drawn[f"curves-{norm}"] = security.interactive(members)
        families.append({"title": f"norm {norm}", "plot": f"curves-{norm}", "curves": members})
    return families


def _downloads(groups: Sequence[Group]) -> list[_Download]:
    frame = rows.frame([line.row for group in groups for line in group.lines])
    kinds = [
        ("CSV, every column", "csv", "text/csv", formats.to_csv),
        ("LaTeX (booktabs)", "tex", "application/x-tex", formats.to_latex),
        ("Markdown", "md", "text/markdown", formats.to_markdown),
        ("JSON", "json", "application/json", formats.to_json),
    ]
    return [
        _Download(title, f"leaderboard.{ending}", kind, write(frame))
        for title, ending, kind, write in kinds
    ]


def _libraries() -> dict[str, str]:
    """Return plotly.js and DataTables, compressed: the browser unpacks them."""
    bundle = Path(need("itables.options").dt_bundle)
    texts = {
        "data-plotly": need("plotly.offline").get_plotlyjs(),
        "data-table": bundle.read_text("utf-8"),
        "data-table-style": bundle.with_suffix(".css").read_text("utf-8"),
    }
    return {name: _packed(text) for name, text in texts.items()}


def _packed(text: str) -> str:
    """Compress what the browser unpacks: many plots repeat the same names."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
