"""Max-product decoding compiled for the CPU: the best path and the k best paths."""

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain
from pyrohmm.ops.layout import Batch
from pyrohmm.ops.matrices import Matrices
from pyrohmm.ops.memory import empty
from pyrohmm.ops.viterbi import cpu_kernels


def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """Best path (*batch, T) and its total potential (*batch). Ties go to the lowest state."""
    batch, matrices = Batch.of(chain), Matrices.of(chain)
    sequences, steps = len(batch.order), len(batch.order) * chain.num_steps
    potentials = (*batch.initial[:2], *batch.transition)
    narrow = len(batch.lanes) % 2 == 0
    found = (
        empty((sequences if narrow else steps) * chain.num_states, dtype=chain.observation.dtype).numpy(),
        np.empty(steps * chain.num_states if narrow else 0, np.int8),
    )
    batch.run(cpu_kernels.scores, *potentials, *matrices.packed(), *batch.observation, *found)
    states, log_prob = np.empty(steps, np.int64), np.empty(sequences)
    columns = matrices.columns(0 if narrow else steps)
    batch.run(cpu_kernels.trace, *potentials, *columns, *batch.observation, *found, states, log_prob)
    return (
        torch.from_numpy(states).view(*chain.batch_shape, chain.num_steps),
        torch.from_numpy(log_prob).to(chain.observation.dtype).view(chain.batch_shape),
    )


def k_best(chain: Chain, k: int) -> tuple[Tensor, Tensor]:
    """The k best paths (*batch, k, T) and their total potentials (*batch, k), best first."""
    batch = Batch.of(chain)
    states = np.empty(len(batch.order) * k * chain.num_steps, np.int64)
    log_prob = np.empty(len(batch.order) * k)
    potentials = (*batch.initial[:2], *batch.transition, *batch.observation)
    batch.run(cpu_kernels.list_paths, *potentials, k, states, log_prob)
    return (
        torch.from_numpy(states).view(*chain.batch_shape, k, chain.num_steps),
        torch.from_numpy(log_prob).to(chain.observation.dtype).view(*chain.batch_shape, k),
    )
