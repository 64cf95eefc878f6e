"""Max-product decoding compiled for the CPU: the best path and the k best paths."""

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain
from pyrohmm.ops.layout import Batch
from pyrohmm.ops.matrices import Matrices
from pyrohmm.ops.viterbi import cpu_kernels


def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """Best path (*batch, T) and its total potential (*batch). Ties go to the lowest state."""
    batch = Batch.of(chain)
    sequences = len(batch.order)
    matrices = Matrices.of(chain)
    potentials = (*batch.initial[:2], *batch.transition)
    scores = chain.observation.new_empty(sequences * chain.num_steps * chain.num_states).numpy()
    batch.run(cpu_kernels.scores, *potentials, *matrices.packed(), *batch.observation, scores)
    states = np.empty(sequences * chain.num_steps, np.int64)
    log_prob = np.empty(sequences)
    columns = matrices.columns(sequences * chain.num_steps)
    batch.run(cpu_kernels.trace, *potentials, *columns, *batch.observation, scores, states, log_prob)
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
