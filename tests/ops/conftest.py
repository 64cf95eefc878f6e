import functools

import pytest
import torch

from pyrohmm import ops
from tests.ops.cases import IMPLS


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device != "cpu":
        for name in ("log_partition", "filter", "smooth", "entropy", "viterbi", "k_best", "sample", "explain"):
            setattr(ops, name, on_device(getattr(ops, name), device))


def on_device(op, device: str):
    """The same op, with the arguments brought to a device and the results back."""

    @functools.wraps(op)
    def moved(*logits, lengths=None, generator=None, **options):
        if generator is not None:
            seed = torch.randint(1 << 40, (), generator=generator).item()
            options["generator"] = torch.Generator(device).manual_seed(seed)
        lengths = lengths.to(device) if isinstance(lengths, torch.Tensor) else lengths
        logits = [x.to(device) if isinstance(x, torch.Tensor) else x for x in logits]
        result = op(*logits, lengths=lengths, **options)
        if isinstance(result, torch.Tensor):
            return result.cpu()
        return type(result)(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in result))

    return moved


# Not function-scoped: hypothesis runs many examples with one value of the fixture.
@pytest.fixture(scope="session", params=IMPLS)
def impl(request) -> str:
    """Every implementation there is; each is held to the same tests."""
    if request.param == "cpu" and request.config.getoption("--device") != "cpu":
        pytest.skip("not on this device")
    return request.param


@pytest.fixture(scope="session")
def quick_impl(request, impl) -> str:
    """Implementations that are fast enough for many examples or long sequences: not kernels under an interpreter."""
    if impl == "gpu" and request.config.getoption("--device") == "cpu":
        pytest.skip("too slow under an interpreter")
    return impl


@pytest.fixture(scope="session")
def listing_impl(impl) -> str:
    """Implementations that list the k best paths."""
    if impl == "gpu":
        pytest.skip("has no kernel for it")
    return impl
