"""Without numba, without a folder to write to, and in the second process."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyrohmm

PACKAGE = Path(pyrohmm.__file__).parent

CALL = """
    import torch
    from pyrohmm import ops
    from pyrohmm.testing import random_chain
    chain = random_chain(3, 4, (2,))
    value = ops.log_partition(*chain.logits, impl="cpu")
    torch.testing.assert_close(value, ops.log_partition(*chain.logits, impl="reference"))

    import pyrohmm
    from pyrohmm.ops import matrices
    from pyrohmm.ops.forward_backward import cpu_scaled
    kernels = [matrices._pack_scaled, cpu_scaled.forward]
    hits = sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels)
    misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
    print(pyrohmm.__file__, hits, misses)
"""


def in_new_process(script: str, **environment: str | Path) -> list[str]:
    """The words that a script prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", textwrap.dedent(script)],
        env=inherited | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def read_only(tmp_path) -> Path:
    """A folder with a copy of the package in which nothing can be cached, not even by root."""
    shutil.copytree(PACKAGE, tmp_path / "site" / "pyrohmm", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in (tmp_path / "site").rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("a file where the folder should be")
        folder.chmod(0o555)
    yield tmp_path / "site"
    for folder in [path for path in (tmp_path / "site").rglob("*") if path.is_dir()]:
        folder.chmod(0o755)


def test_importing_the_library_does_not_import_numba():
    assert (
        in_new_process("""
        import sys
        import pyrohmm
        print(*({"numba", "llvmlite"} & {name.partition(".")[0] for name in sys.modules}))
    """)
        == []
    )


def test_without_numba_auto_is_the_reference():
    script = """
        import sys
        sys.modules["numba"] = sys.modules["llvmlite"] = None
        import torch
        from pyrohmm import ops
        from tests.ops.cases import OPS
        from pyrohmm.testing import random_chain
        chain = random_chain(3, 4, (2,), lengths="ragged")
        print(ops.explain(*chain.logits))
        for op in OPS.values():
            torch.manual_seed(0)
            auto = op(*chain.logits, lengths=chain.lengths)
            torch.manual_seed(0)
            reference = op(*chain.logits, lengths=chain.lengths, impl="reference")
            torch.testing.assert_close(auto, reference, rtol=0, atol=0)
            try:
                op(*chain.logits, lengths=chain.lengths, impl="cpu")
            except NotImplementedError as error:
                assert "'cpu'" in str(error) and "numba is not installed" in str(error)
            else:
                raise AssertionError("an explicit request fell back")
    """
    said = " ".join(in_new_process(script, PYTHONPATH=PACKAGE.parent))
    assert said == "reference, log space: numba is not installed"


def test_a_second_process_compiles_nothing(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "pyrohmm", ignore=shutil.ignore_patterns("__pycache__"))
    where = str(tmp_path / "pyrohmm" / "__init__.py")
    assert in_new_process(CALL, PYTHONPATH=tmp_path) == [where, "0", "2"]
    assert in_new_process(CALL, PYTHONPATH=tmp_path) == [where, "2", "0"]


def test_a_read_only_installation_keeps_kernels_in_the_users_cache(read_only, tmp_path):
    where = str(read_only / "pyrohmm" / "__init__.py")
    environment = {"PYTHONPATH": read_only, "HOME": tmp_path / "home", "XDG_CACHE_HOME": tmp_path / "cache"}
    assert in_new_process(CALL, **environment) == [where, "0", "2"]
    assert in_new_process(CALL, **environment) == [where, "2", "0"]


def test_a_read_only_installation_with_nowhere_to_write_computes(read_only, tmp_path):
    no_folder = tmp_path / "file"
    no_folder.touch()
    environment = {"PYTHONPATH": read_only, "HOME": no_folder / "home", "XDG_CACHE_HOME": no_folder / "cache"}
    found = in_new_process(CALL, **environment)
    assert found[:2] == [str(read_only / "pyrohmm" / "__init__.py"), "0"]
