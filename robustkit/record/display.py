"""How a record shows itself: as a data frame, in a terminal, in a notebook, in one line."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from robustkit.core.text import clean, with_interval
from robustkit.record.interval import robust_interval

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


class RecordDisplay:
    """The faces of a `robustkit.Record`; nothing here is part of what is stored."""

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per evaluated point, indexed by its position in the data set.

        Columns: label and predicted (class numbers), label_name, status (misclassified, broken,
        robust or certified), attack (the one that broke the point, else None) and distance (from
        the clean to the adversarial input, in the norm of the threat model, else NaN); of a
        randomized model also errors (the share of passes that err at the input the point is judged
        by). `attrs` holds defense, data, threat and seed.
        """
        import pandas as pd

        record = cast(Any, self)
        points = record.points
        columns: dict[str, Any] = {
            "label": points.label,
            "label_name": [record.class_name(label) for label in points.label],
            "predicted": points.predicted,
            "status": pd.Categorical(
                points.status, ["misclassified", "broken", "robust", "certified"]
            ),
            "attack": pd.Series(points.attack, index=points.index, dtype=object),
            "distance": pd.Series(points.distance, index=points.index, dtype=float),
        }
        if points.errors is not None:
            columns["errors"] = pd.Series(points.errors, index=points.index, dtype=float)
        frame = pd.DataFrame(columns, index=pd.Index(points.index, name="point"))
        frame.attrs = dict(
            defense=record.defense, data=record.data.title, threat=_threat(record), seed=record.seed
        )
        return frame

    def __repr__(self) -> str:
        facts = dict(_facts(self))
        told = ", ".join(f"{name} {value}" for name, value in list(facts.items())[1:])
        return f"<Record {facts['defense']!r}: {told}>"

    __str__ = __repr__

    def __rich_repr__(self) -> Iterator[tuple[str, str]]:
        yield from _facts(self)

    def __rich__(self) -> Table:
        """Return the headline, the flags with their messages, and what each attack did."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        record = cast(Any, self)
        table = Table(title=Text(repr(self)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name, side in _STAGES.items():
            table.add_column(name, justify=side, overflow="fold")
        for cells in _stages(record):
            table.add_row(*map(Text, cells))
        if record.flags:
            told = (clean(f"{flag.name}: {flag.message}") for flag in record.flags)
            table.caption, table.caption_justify = Text("\n".join(told)), "left"
        return table

    def _repr_html_(self) -> str:
        record, quote = cast(Any, self), html.escape
        facts = "".join(f"<tr><th>{quote(k)}</th><td>{quote(v)}</td></tr>" for k, v in _facts(self))
        head = "".join(f"<th>{quote(name)}</th>" for name in _STAGES)
        body = "".join(
            f"<tr>{''.join(f'<td>{quote(cell)}</td>' for cell in cells)}</tr>"
            for cells in _stages(record)
        )
        flags = "".join(
            f"<li>{quote(clean(f'{flag.name}: {flag.message}'))}</li>" for flag in record.flags
        )
        return (
            f"<table>{facts}</table><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><ul>{flags}</ul>"
        )


_STAGES: dict[str, Any] = {
    **{"attack": "left", "points attacked": "right", "points broken": "right"},
    **{"forwards": "right", "backwards": "right", "seconds": "right"},
}


def _facts(shown: RecordDisplay) -> list[tuple[str, str]]:
    record = cast(Any, shown)
    facts = [
        ("defense", clean(record.defense)),
        ("data", clean(record.data.title)),
        ("threat", _threat(record)),
        ("n", str(record.n)),
        ("clean", f"{record.clean:.4f}"),
        ("robust", with_interval(record.robust, *robust_interval(record), digits=4)),
    ]
    if record.expected is not None:
        facts.append(
            ("one pass", with_interval(record.expected, *record.expected_interval, digits=4))
        )
    if record.abstained is not None:
        facts.append(("abstains", f"{record.abstained:.4f}"))
    if record.certified is not None:
        facts.append(("certified", f"{record.certified:.4f}"))
    if record.flags:
        facts.append(("flags", ", ".join(clean(flag.name) for flag in record.flags)))
    if record.reliability != "reliable":
        facts.append(("verdict", record.reliability))
    return facts


def _stages(record: Any) -> list[list[str]]:
    return [
        [
            clean(stage.attack),
            str(stage.entered),
            str(stage.broken),
            f"{stage.forwards:,}",
            f"{stage.backwards:,}",
            f"{stage.seconds:,.1f}",
        ]
        for stage in record.stages
    ]


def _threat(record: Any) -> str:
    return str(record.threat.text)
