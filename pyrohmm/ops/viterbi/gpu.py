"""Max-product decoding in Triton: which form for which chain, and memory for the scores.

Nothing here waits for the device.
"""

import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain
from pyrohmm.ops.grid import Blocks, Grid, blocks, launch, power_of_two
from pyrohmm.ops.places import unexpanded
from pyrohmm.ops.viterbi import gpu_kernels

# Up to so many states, a program holds the scores of its sequences and a matrix in registers; so many scores at most.
WALK = 64
# The most states that a program of the other form goes to, and the number of those that it comes from at a time. If it
# goes to all, it goes through all steps; else the programs meet after each step, which is the end of a launch.
TO, FROM = 256, 8
# The most sequences for which such a program loads the matrix once: with more, registers spill.
SWEEP = 8
# Programs take several sequences only if they still have so many warps together: one for each scheduler of an H200.
WARPS = 512
# Loads that are on their way while a step is computed.
STAGES = 3


def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """Best path (*batch, T) and its total potential (*batch). Ties go to the lowest state."""
    grid, observation = Grid.of(chain), chain.observation.detach()
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    scores, log_prob = observation.new_empty(B, T, K), observation.new_empty(B)
    states = torch.full((B, T), -1, device=observation.device)
    if T > 0:
        begin = chain.initial.detach() + observation[..., 0, :]
        scores.view(*chain.batch_shape, T, K)[..., 0, :].copy_(begin)
    if T > 1:
        _forward(chain, grid, scores)
    side = max(2, power_of_two(K))
    rows = max(1, min(16, 64 // side))
    launch(
        gpu_kernels.trace,
        (-(-B // rows),),
        B,
        grid.lengths,
        grid.starts,
        K,
        *grid.transition,
        *(scores, states, log_prob),
        N=rows,
        S=side,
        num_warps=max(1, min(8, side // 256)),
    )
    return states.view(*chain.batch_shape, T), log_prob.view(chain.batch_shape)


def _forward(chain: Chain, grid: Grid, scores: Tensor) -> None:
    """Fill in the scores of all steps but the first."""
    T, K = grid.num_steps, grid.num_states
    potentials = (grid.lengths, grid.starts, K, *grid.transition, *grid.observation, scores)
    if K <= WALK:
        side = max(2, power_of_two(K))
        warps = max(1, side // 32)
        # No fewer pairs of states than a warp has threads.
        parts = _blocks(chain, warps, max(1, 32 // side**2), WALK // side)
        options = {"N": parts.rows, "S": side, "EACH": chain.transition.shape[-3] > 1}
        launch(gpu_kernels.walk, (parts.count,), parts.order, *potentials, **options, STAGES=STAGES, num_warps=warps)
        return
    to = min(TO, power_of_two(K))
    # Each thread has two of the states that are gone to.
    tiles, warps = -(-K // to), to // 64
    parts = _blocks(chain, tiles * warps, 1, SWEEP)
    options = {"N": parts.rows, "FROM": FROM, "TO": to, "STAGES": STAGES, "num_warps": warps}
    steps = ((1, T),) if tiles == 1 else ((t, t + 1) for t in range(1, T))
    for first, last in steps:
        launch(gpu_kernels.sweep, (tiles * parts.count,), first, last, parts.order, *potentials, **options)


def _blocks(chain: Chain, warps: int, smallest: int, largest: int) -> Blocks:
    """Blocks of sequences with common matrices, as large as leaves work for all of the device, if each has `warps`."""
    shape, sequences = unexpanded(chain.transition, 3).shape[:-3], chain.batch_shape.numel()
    # No larger than all sequences that share a matrix need.
    shared = power_of_two(max(1, sequences // max(1, shape.numel())))
    rows = max(1, min(largest, shared, sequences * warps // WARPS))
    # The largest power of two in it.
    rows = 1 << (rows.bit_length() - 1)
    return blocks(shape, chain.batch_shape, max(smallest, rows), chain.observation.device)
