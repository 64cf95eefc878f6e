"""The examples of the README and of docs run as they are written (with fewer steps), and their links lead somewhere."""

import re
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(path, example, id=f"{path.stem}-{i}")
    for path in DOCUMENTS
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL), 1)
]


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
def test_example_runs(path, example):
    for package, name in (("hmmlearn", "hmmlearn"), ("pyrohmm.sklearn", "sklearn")):
        if f"from {package}" in example:
            pytest.importorskip(name)
    pyro.clear_param_store()
    short = example.replace("range(200)", "range(3)").replace("steps=500", "steps=3, progress=False")
    assert short != example or "range" not in example
    exec(compile(short, str(path), "exec"), {})
    pyro.clear_param_store()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
