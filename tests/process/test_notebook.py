"""A run in a real notebook kernel: it works beside the kernel's event loop, and shows one bar."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RUN = """
import batchrun
requests = [{"prompt": str(n)} for n in range(200)]
summary = batchrun.run(requests, endpoint="local", worker="echo", output="out.jsonl")
assert (summary.succeeded, summary.calls["run"]) == (200, 200)
"""
WITHOUT_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"


def outputs(folder: Path, *cells: str) -> tuple[list[dict], list[dict]]:
    """What the last cell shows, and the states of all widgets."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    return notebook.cells[-1].outputs, [each["state"] for each in widgets.get("state", {}).values()]


def test_a_notebook_shows_its_own_bar_once(tmp_path: Path):
    shown, widgets = outputs(tmp_path, RUN)
    assert [each.output_type for each in shown] == ["display_data"]
    texts = [str(widget.get("value")) for widget in widgets]
    assert any("200/200" in text for text in texts), texts


def test_a_notebook_without_widgets_writes_over_one_line(tmp_path: Path):
    shown, widgets = outputs(tmp_path, WITHOUT_WIDGETS, RUN)
    text = "".join(each.text for each in shown)
    assert not widgets
    assert text.count("\n") == 1
    assert "200/200" in text.rpartition("\r")[2]
