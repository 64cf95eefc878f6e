"""The documentation's settings: `make docs` builds it into docs/_build/html."""

import re
import shutil
from pathlib import Path
from typing import Any

import pyrohmm

ROOT = Path(__file__).parents[1]

project = "pyrohmm"
author = "The pyrohmm authors"
release = pyrohmm.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"pyrohmm {release}"
html_static_path: list[str] = []
# Single backticks in docstrings: a link where the name is known, code where not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings tell shapes too
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of a NamedTuple are attributes already
suppress_warnings = ["ref.python"]  # a short name in backticks may be that of several things
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# Notebooks are kept with their results; see tutorials/README.md.
nb_execution_mode = "off"

# What lives elsewhere in the repository, and where it is shown.
COPIED = [
    ("tutorials", "*.ipynb", "tutorials"),
    ("benchmarks", "README.md", "benchmarks"),
    ("benchmarks/results", "*.md", "benchmarks/results"),
    ("pyrohmm/ops", "README.md", "derivations/ops"),
    ("pyrohmm/program", "README.md", "derivations/program"),
    ("experiments", "*/README.md", "experiments"),
    ("experiments", "*/**/*.png", "experiments"),
]


def copy_pages() -> None:
    """Copy pages from the rest of the repository into this folder, where Sphinx looks for them."""
    for target in {target.split("/")[0] for _, _, target in COPIED}:
        shutil.rmtree(ROOT / "docs" / "_pages" / target, ignore_errors=True)
    for folder, pattern, target in COPIED:
        for source in sorted((ROOT / folder).glob(pattern)):
            page = ROOT / "docs" / "_pages" / target / source.relative_to(ROOT / folder)
            page.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, page)
    # A folder is no page; the tables in it are listed beside.
    readme = ROOT / "docs" / "_pages" / "benchmarks" / "README.md"
    readme.write_text(readme.read_text().replace("[results/](results/)", "`results/`"))


def is_shown_elsewhere(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Whether to leave a member out: of other libraries, or at the top level, where it has its place."""
    top_level = any(obj is getattr(pyrohmm, other) for other in pyrohmm.__all__)
    if top_level and app.env.docname != "api/pyrohmm":
        return True
    return True if str(getattr(obj, "__module__", "")).startswith(("sklearn", "torch", "pyro.")) else None


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let the stars and bars of shapes and formulas, as in (*batch, K) and |x|, be just that."""
    verbatim_indent = None  # of a formula's or an example's first line
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if verbatim_indent is not None and line.strip() and indent <= verbatim_indent:
            verbatim_indent = None
        text = line.strip()
        if text.startswith(".. math::") or text.endswith("::"):
            verbatim_indent = indent
        elif text.startswith(">>>"):
            verbatim_indent = indent - 1  # up to the next blank line
        elif not text and verbatim_indent is not None and lines[i - 1].strip() and _in_example(lines, i):
            verbatim_indent = None
        if verbatim_indent is None:
            parts = re.split(r"(``.*?``|:math:`.*?`)", line)
            parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def _in_example(lines: list[str], end: int) -> bool:
    """Whether the block of lines before `end` has a prompt in it."""
    for line in reversed(lines[:end]):
        if not line.strip():
            return False
        if line.strip().startswith(">>>"):
            return True
    return False


def setup(app: Any) -> None:
    """Connect what is above to Sphinx."""
    app.connect("autodoc-skip-member", is_shown_elsewhere)
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon


copy_pages()
