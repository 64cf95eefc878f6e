"""Forward filtering, backward sampling in Triton, by inversion of uniform numbers. Nothing waits for the device."""

import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain
from pyrohmm.ops.grid import Grid, launch, power_of_two
from pyrohmm.ops.sampling import gpu_kernels

# Numbers in the registers of a program: several paths where there are few states; all states of one path else.
TILE = 64


def sample(chain: Chain, log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Paths drawn from the posterior, one uniform number a step; arguments as in the reference."""
    grid, paths = Grid.of(chain), uniforms.shape[:-1].numel()
    states = torch.full(uniforms.shape, -1, device=uniforms.device)
    side = max(2, power_of_two(grid.num_states))
    rows = max(1, TILE // side)
    launch(
        gpu_kernels.sample,
        (-(-paths // rows),),
        *(paths, len(grid.lengths), grid.num_steps),
        grid.lengths,
        grid.starts,
        grid.num_states,
        *grid.transition,
        *(log_probs.contiguous(), uniforms.contiguous(), states),
        N=rows,
        S=side,
        # A thread has eight numbers at most.
        num_warps=max(1, min(16, side // 256)),
    )
    return states
