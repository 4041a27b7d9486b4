"""A real notebook: bars without widgets, a record as a table, nothing on the standard streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

RUN = """
import robustkit
record = robustkit.evaluate("pgd_at", data="bundled", threat="linf:0.1", attacks=["fgsm"], n=20)
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The outputs of an executed notebook, cell by cell."""
    cells = [
        RUN,
        "record",
        "record.to_pandas().head(2)",
        RUN.replace("n=20", "n=20, progress=False"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    room: Path = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(room)}}
    ).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's machinery
class TestNotebook:
    def test_bars_are_one_output_that_shows_the_end(self, cells: list[Any]) -> None:
        pictures = [out for out in cells[0] if "text/html" in out.get("data", {})]
        assert len(pictures) == 1
        text = pictures[0]["data"]["text/plain"]
        assert "pgd_at: clean" in text
        assert "pgd_at: fgsm" in text
        assert "of 20 robust" in text
        said = [out["data"]["text/plain"] for out in cells[0] if out is not pictures[0]]
        assert len(said) == 1
        assert said[0].startswith("Record: robustkit-runs")

    def test_a_record_is_a_table(self, cells: list[Any]) -> None:
        (shown,) = cells[1]
        assert "<th>robust</th>" in shown["data"]["text/html"]
        assert shown["data"]["text/plain"].startswith("<Record 'pgd_at': data bundled")
        assert "status" in cells[2][0]["data"]["text/html"]

    def test_bars_can_be_left_out(self, cells: list[Any]) -> None:
        assert cells[3] == []

    def test_nothing_reaches_the_standard_streams(self, cells: list[Any]) -> None:
        assert [out for outputs in cells for out in outputs if out.output_type == "stream"] == []
