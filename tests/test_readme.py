"""The README's examples run as they are written (with fewer steps)."""

import re
from pathlib import Path

import pyro
import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["loop", "priors", "neural model", "EM", "distribution"])
def test_example_runs(example):
    pyro.clear_param_store()
    short = example.replace("range(200)", "range(3)").replace("steps=500", "steps=3, progress=False")
    assert short != example or "range" not in example
    exec(compile(short, str(README), "exec"), {})
    pyro.clear_param_store()


def test_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
