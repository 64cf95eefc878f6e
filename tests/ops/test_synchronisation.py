"""With validation off, no op on a GPU waits for the device: the program runs ahead of it.

Without a GPU, what would wait is seen in the operations that torch is asked for.
"""

import pytest
import torch
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyrohmm import ops
from pyrohmm.ops import chain as chain_module
from pyrohmm.ops import spans
from pyrohmm.ops.forward_backward import api, gpu_counts, gpu_walk, gpu_wide
from pyrohmm.ops.grid import launch
from pyrohmm.ops.sampling import gpu as sampling_gpu
from pyrohmm.ops.viterbi import gpu as viterbi_gpu
from pyrohmm.testing import random_chain

# Those whose result, or the shape of whose result, is only known to the device.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Watch(TorchDispatchMode):
    """Notes down which operations would wait."""

    def __init__(self):
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        mask = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in WAITING or mask:
            self.waited.append(name)
        return func(*args, **(kwargs or {}))


def test_a_watch_sees_what_would_wait():
    x = torch.arange(3.0)
    with Watch() as watch:
        bool(x.sum() > 0), x[x > 1], float(x[0])
    assert watch.waited == ["_local_scalar_dense", "index", "_local_scalar_dense"]


@pytest.mark.parametrize(("num_states", "steps"), [(3, None), (3, 2), (70, None)])
@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_nothing_waits(num_states, steps, transitions, monkeypatch):
    monkeypatch.setattr(spans, "steps_of_span", lambda num_steps, *_: steps if num_steps > 2 else None)
    monkeypatch.setattr(Distribution, "_validate_args", False)
    # Lengths on the CPU, and only there, are looked at in any case.
    monkeypatch.setattr(chain_module, "check_lengths", unwatched(chain_module.check_lengths))
    monkeypatch.setattr(api, "clear_padding", unwatched(api.clear_padding))
    for module in (gpu_walk, gpu_counts, gpu_wide, viterbi_gpu, sampling_gpu):
        monkeypatch.setattr(module, "launch", unwatched(launch))
    chain = random_chain(num_states, 3, (2,), transitions=transitions, lengths="ragged").requires_grad()
    arguments = {"lengths": chain.lengths, "impl": "gpu"}
    with Watch() as watch:
        grads = torch.autograd.grad(
            ops.log_partition(*chain.logits, **arguments).sum(), chain.logits, create_graph=num_states < 65
        )
        if num_states < 65:  # beyond, second derivatives are the reference's
            sum(grad.square().sum() for grad in grads).backward()
        with torch.no_grad():
            ops.filter(*chain.logits, **arguments)
            ops.smooth(*chain.logits, **arguments)
            ops.smooth(*chain.logits, **arguments, transitions="each")
            ops.entropy(*chain.logits, **arguments)
            ops.viterbi(*chain.logits, **arguments)
            ops.sample(*chain.logits, **arguments, sample_shape=(2,))
    assert not watch.waited


def unwatched(function):
    def called(*arguments, **options):
        with _disable_current_modes():
            return function(*arguments, **options)

    return called
