"""A record shows itself: as a data frame, in one line, in a terminal and in a notebook."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console
from rich.pretty import pretty_repr

from robustkit import Record
from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.stats.sequential import confidence_sequence
from robustkit.data.dataset import shuffled
from robustkit.leaderboard.rows import row
from robustkit.record.interval import clean_interval
from robustkit.record.schema import Stage
from robustkit.verify.flags import Flag

EVIL = "<b>[red]x[/red]\x1b[2J"


@pytest.fixture
def record(make_record: Callable[..., Record]) -> Record:
    """Certified, robust, broken, misclassified: one point of each."""
    stage = Stage(attack=EVIL, jobs=2, entered=2, broken=1, forwards=1234, backwards=5, seconds=6)
    return make_record(
        EVIL, "crbm", attacks=[EVIL], stages=[stage], flags=[Flag(name="chance", message=EVIL)]
    )


def test_a_frame_has_a_row_a_point(record: Record) -> None:
    frame = record.to_pandas()
    assert frame.index.name == "point"
    assert frame.index.tolist() == record.points.index
    assert frame["status"].tolist() == ["certified", "robust", "broken", "misclassified"]
    assert frame["label_name"].tolist() == [record.class_name(y) for y in record.points.label]
    assert (frame["label"] != frame["predicted"]).tolist() == [False, False, False, True]
    assert frame["attack"].tolist() == [None, None, EVIL, None]
    assert frame["distance"].map(math.isnan).tolist() == [True, True, False, True]
    assert (frame["status"].isin(["robust", "certified"])).mean() == record.robust
    assert frame.attrs["threat"] == "linf:0.1"


def test_one_line_says_what_matters_and_nothing_moves_the_cursor(record: Record) -> None:
    # Clopper–Pearson for 2 of 4: the quantiles B(.025; 2, 3) = .067586 and B(.975; 3, 2) = .932414.
    assert repr(record) == str(record)
    assert repr(record) == (
        "<Record '<b>[red]x[/red] [2J': data toys, threat linf:0.1, n 4, clean 0.7500, "
        "robust 0.5000 [0.0676, 0.9324], certified 0.2500, flags chance, verdict unreliable>"
    )
    assert "robust='0.5000" in pretty_repr(record)


def test_a_terminal_shows_attacks_and_flags_as_they_are(record: Record) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    console.print(record)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("<b>[red]x[/red] [2J", "1,234", "chance: <b>[red]x[/red] [2J"):
        assert part in text
    assert "\x1b[2J" not in text


def test_a_notebook_gets_tables_without_the_markup_of_names(record: Record) -> None:
    text = record._repr_html_()
    assert "&lt;b&gt;[red]x[/red]" in text
    assert "<b>" not in text
    assert "<td>1,234</td>" in text


def test_a_run_that_stopped_early_shows_the_interval_of_the_table(
    make_record: Callable[..., Record],
) -> None:
    whole = make_record("toy", "rrrb" * 15)
    data = whole.data.model_copy(update={"planned": 90})
    early = whole.model_copy(update={"data": data})
    order = shuffled(early.points.index, early.seed)
    low, high = confidence_sequence(np.array([early.outcomes[p] for p in order], dtype=float))
    told = f"robust 0.7500 [{low:.4f}, {high:.4f}]"
    assert told in repr(early)
    assert told.removeprefix("robust ") in early._repr_html_()
    line = row(early, "r")
    assert (line.robust_low, line.robust_high) == (round(low, 6), round(high, 6))
    fixed = clopper_pearson(45, 60)
    assert f"[{fixed.low:.4f}, {fixed.high:.4f}]" in repr(whole)
    assert low < fixed.low < fixed.high < high
    clean = clean_interval(early)
    assert clean == confidence_sequence(np.ones(60))
    assert clean.low < clean_interval(whole).low


def test_the_accuracy_of_one_pass_has_a_valid_interval_too(
    make_record: Callable[..., Record],
) -> None:
    made = make_record("toy", "rrrb" * 15)
    points = made.points.model_copy(update={"errors": [0.0, 0.1, 0.25, 0.75] * 15})
    whole = made.model_copy(update={"points": points})
    early = whole.model_copy(update={"data": made.data.model_copy(update={"planned": 90})})
    assert whole.expected == early.expected == pytest.approx(0.725)
    assert whole.expected_interval is not None and early.expected_interval is not None
    (low, high), (wide_low, wide_high) = whole.expected_interval, early.expected_interval
    assert wide_low < low < 0.725 < high < wide_high
