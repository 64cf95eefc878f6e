import pytest
import torch

from pyrohmm.ops import memory
from pyrohmm.ops.memory import empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("large", [0, 2**24])
def test_memory_is_ours_to_write(shape, dtype, large, monkeypatch):
    monkeypatch.setattr(memory, "_LARGE", large)
    found, other = empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)
    assert found.shape == shape and found.dtype == dtype and found.is_contiguous()
    found.fill_(1)
    other.fill_(2)
    assert (found == 1).all() and (other == 2).all()
    if found.numel():
        assert found.data_ptr() % 64 == 0


def test_on_another_device():
    assert empty(3, dtype=torch.float32, device="meta").device.type == "meta"
