"""Forward filtering, backward sampling in Triton, by inversion of uniform numbers. Nothing waits for the device."""

from functools import partial

import torch
from torch import Tensor

from pyrohmm.ops import spans
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.grid import Grid, launch, power_of_two
from pyrohmm.ops.sampling import gpu_kernels

# Numbers in the registers of a program: several paths where there are few states; all states of one path else.
TILE = 64
# The most states for which time is cut: each of them may follow a span.
CUT = 64


def sample(chain: Chain, log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Paths drawn from the posterior, one uniform number a step; arguments as in the reference."""
    grid, paths, K = Grid.of(chain), uniforms.shape[:-1].numel(), chain.num_states
    states = torch.full(uniforms.shape, -1, device=uniforms.device)
    walk = partial(_walk, grid, log_probs.contiguous(), uniforms.contiguous(), states)
    steps = spans.steps_of_span(grid.num_steps, paths, K) if K <= CUT else None
    if steps is None:
        walk(paths)
        return states
    count = grid.num_steps // steps + 1
    # The state at the first step of each span, for each that may follow it; K where the path ends on the way.
    firsts = torch.full((paths, count, K + 1), K, device=uniforms.device)
    walk(paths * count * K, steps, count, firsts, maps=True)
    walk(paths * count, steps, count, spans.follow(firsts).contiguous())
    return states


def _walk(
    grid: Grid,
    log_probs: Tensor,
    uniforms: Tensor,
    states: Tensor,
    number: int,
    steps: int = 1,
    count: int = 1,
    firsts: Tensor | None = None,
    *,
    maps: bool = False,
) -> None:
    """Walk back with so many rows: paths, or spans of them if there are `firsts`; see the kernel."""
    side = max(2, power_of_two(grid.num_states))
    rows = max(1, TILE // side)
    # A thread has eight numbers at most.
    warps = max(1, min(16, side // 256))
    launch(
        gpu_kernels.sample,
        (-(-number // rows),),
        *(number, len(grid.lengths), grid.num_steps, steps, count),
        grid.lengths,
        grid.starts,
        grid.num_states,
        *grid.transition,
        *(log_probs, uniforms, states if firsts is None else firsts, states),
        N=rows,
        S=side,
        CUT=firsts is not None,
        MAPS=maps,
        num_warps=warps,
        # Left to choose, ptxas spills a few numbers of two states.
        **({"maxnreg": 128} if warps == 1 else {}),
    )
