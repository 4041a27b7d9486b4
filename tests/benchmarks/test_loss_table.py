"""The table of outer losses, in small: it is finished, resumed, and compares the same points."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from benchmarks import losses
from robustkit.data.dataset import Dataset
from robustkit.record.record import Record, load


@pytest.fixture
def small(blobs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "open_dataset", lambda *_, **__: blobs)
    monkeypatch.setattr(losses, "ROWS", ("trades", "pgd_at(loss=z_loss)"))
    for part in losses.LINE_UPS:
        monkeypatch.setitem(losses.LINE_UPS, part, {"attacks": ["fgsm"]})


def table(out: Path, *more: str) -> list[list[str]]:
    how = f"--out {out} --seeds 0 --batch-size 40 --width 2 --steps 1 --n 20".split()
    done = CliRunner().invoke(losses.main, [*how, *more])
    assert done.exit_code == 0, done.output
    written = (out / "table.md").read_text()
    assert done.stdout.endswith(written)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]


@pytest.mark.usefixtures("small")
def test_rows_are_compared_once_all_their_seeds_are_done(tmp_path: Path) -> None:
    assert len(table(tmp_path, "--rows", "trades")) == 3
    weights = losses.cell(tmp_path, "trades", 0) / "model.safetensors"
    before = weights.read_bytes()
    heads, _, first, second = table(tmp_path)
    assert weights.read_bytes() == before
    assert first[0] == "`trades`" and first[-4:] == [""] * 4
    assert second[0] == "`pgd_at(loss=z_loss)`"
    one, two = (load(losses.cell(tmp_path, row, 0) / "fast" / "record.json") for row in losses.ROWS)
    assert first[heads.index("robust")] == f"{one.robust:.3f}"
    gain = f"{two.robust - one.robust:+.3f} ("
    assert second[heads.index("robust − trades")].startswith(gain)
    for row, record in zip(losses.finished(tmp_path, [0]), (one, two), strict=True):
        for value in ("clean", "robust"):
            assert row.outcomes(value).mean() == pytest.approx(getattr(record, value))
    (losses.cell(tmp_path, "trades", 0) / "pgd20" / "record.json").unlink()
    assert table(tmp_path, "--table") == [[""]]


def test_a_row_that_is_at_least_as_good_in_both_is_told() -> None:
    def row(name: str, right: int, robust: int) -> losses.Row:
        status = ["robust"] * robust + ["broken"] * (right - robust)
        status += ["misclassified"] * (200 - right)
        record = SimpleNamespace(
            clean=right / 200, robust=robust / 200,
            points=SimpleNamespace(index=range(200), status=status),
            worst_class=SimpleNamespace(accuracy=0.25),
        )  # fmt: skip
        records = cast(list[Record], [record, record])
        return losses.Row(name, records, records)

    base, better, worse = row("trades", 150, 100), row("a", 150, 120), row("b", 149, 150 - 1)
    lines: list[Any] = list(losses.lines([base, better, worse]))
    assert lines[3].endswith("| +0.000 (+0.000 to +0.000) | +0.100 (+0.058 to +0.142) | "
                             "<0.001, <0.001 | yes |")  # fmt: skip
    assert lines[4].endswith("| <0.001, <0.001 | no |")
    assert lines[2].startswith("| `trades` | 0.750 ± 0.000 | 0.500 ± 0.000 | 0.250 ± 0.000 |")


@pytest.mark.parametrize(("pgd20", "told"), [(0.55, False), (0.57, True)])
def test_a_row_whose_gradient_misleads_pgd_is_told(pgd20: float, told: bool) -> None:
    records, weaker = ([SimpleNamespace(robust=robust)] * 3 for robust in (0.5, pgd20))
    row = losses.Row("a", cast(list[Record], records), cast(list[Record], weaker))
    assert losses.masked(row) == told
