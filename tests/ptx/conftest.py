from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Kernels can only be compiled where Triton does not interpret them: test_device.py sees to it."""
    if collection_path.name == "test_compiled.py" and not getattr(config.option, "emulated", None):
        return True
    return None
