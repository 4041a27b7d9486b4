"""A figure as plotly.js reads it."""

from __future__ import annotations

from typing import Any, TypeAlias

Plot: TypeAlias = dict[str, Any]


class Figure:
    """Traces and layout. Plain data: the checks of plotly's own figures take most of a page."""

    def __init__(self, layout: dict[str, Any]) -> None:
        self.layout = layout | {"annotations": []}
        self.traces: list[dict[str, Any]] = []

    def scatter(self, **trace: Any) -> None:
        self.traces.append({"type": "scatter", **trace})

    def bar(self, **trace: Any) -> None:
        self.traces.append({"type": "bar", **trace})

    def annotate(self, **annotation: Any) -> None:
        self.layout["annotations"].append(annotation)

    def axis(self, name: str, **changes: Any) -> None:
        self.layout[name] |= changes

    @property
    def plot(self) -> Plot:
        return {"data": self.traces, "layout": self.layout}
