"""Every tutorial runs, uses public names only, and its notebook is the same text, executed."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[2] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
scripts = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def run(script: Path, folder: Path, *, driver: tuple[str, ...] = (), **settings: str) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(FOLDER.parent)} | settings
    command = [sys.executable, *driver, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def lacks_data(script: Path) -> bool:
    return "load_" in script.read_text() and "PYROHMM_DATA" not in os.environ


@scripts
def test_smoke(script, tmp_path):
    driver = ("-m", "tests.tutorials.on_miniature_sets") if lacks_data(script) else ()
    run(script, tmp_path, driver=driver, PYROHMM_SMOKE="1")


@pytest.mark.slow
@scripts
def test_whole(script, tmp_path):
    if lacks_data(script):
        pytest.skip("needs a data set: set PYROHMM_DATA")
    run(script, tmp_path)


@scripts
def test_public_names_only(script):
    for node in ast.walk(ast.parse(script.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        assert not any(re.search(r"(^|\.)_[^_]", name) for name in names), names
        own = [name for name in names if name.startswith("pyrohmm.")]
        assert all(name.count(".") <= 2 for name in own), own


@scripts
def test_ends_by_asserting_what_was_recovered(script):
    *_, last = ast.parse(script.read_text()).body
    assert any(isinstance(node, ast.Assert) for node in ast.walk(last))


@scripts
def test_notebook_is_the_script_executed(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    text = jupytext.read(script)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type == "display_data" for output in outputs), "expected a picture"
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
