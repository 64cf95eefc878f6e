"""What a user gets from `pip install`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyrohmm

ROOT = Path(__file__).parents[1]
METADATA = f"pyrohmm-{pyrohmm.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # Without isolation nothing is fetched: the build backend is one of the dev extras.
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {"pyrohmm", METADATA}


def test_wheel_holds_every_module_the_type_marker_and_the_licence(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pyrohmm").rglob("*.py")}
    assert modules
    assert modules | {"pyrohmm/py.typed", f"{METADATA}/licenses/LICENSE"} <= set(wheel.namelist())


def test_import_needs_only_the_declared_dependencies(tmp_path: Path) -> None:
    # arviz, matplotlib, scikit-learn and hypothesis are extras: `import pyrohmm` works without them.
    code = (
        "import sys; extras = ('arviz', 'hypothesis', 'matplotlib', 'sklearn')\n"
        "sys.modules.update(dict.fromkeys(extras))\n"  # None there makes an import of it fail
        "import pyrohmm; print(pyrohmm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "pyrohmm", done.stderr
