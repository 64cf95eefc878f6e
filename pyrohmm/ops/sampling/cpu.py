"""Forward filtering, backward sampling compiled for the CPU, by inversion of uniform numbers."""

import math

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.layout import Batch
from pyrohmm.ops.matrices import Matrices
from pyrohmm.ops.sampling import cpu_kernels


def sample(chain: Chain, log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Paths drawn from the posterior, one uniform number a step; arguments as in the reference."""
    batch = Batch.of(chain)
    paths = math.prod(uniforms.shape[:-1])
    sequence = np.arange(paths) % max(1, len(batch.order))
    states = np.empty(paths * chain.num_steps, np.int64)
    threads.run(
        cpu_kernels.sample,
        threads.split(batch.lengths[sequence] * 20.0 * chain.num_states),
        batch.lanes,
        chain.num_steps,
        chain.num_states,
        sequence,
        batch.lengths,
        *batch.transition,
        *Matrices.of(chain).columns(paths * chain.num_steps),
        log_probs.contiguous().view(-1).numpy(),
        uniforms.view(-1).numpy(),
        states,
    )
    return torch.from_numpy(states).view(uniforms.shape)
