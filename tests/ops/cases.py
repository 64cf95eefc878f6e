"""What the tests of the ops share: the implementations under test, awkward chains, and derivatives to compare."""

import math
from functools import partial
from itertools import product

import torch
from hypothesis import settings
from torch import Tensor

from pyrohmm import ops
from pyrohmm.testing import Chain, random_chain

IMPLS = ["reference", "cpu", "gpu"]

OPS = {
    "log_partition": ops.log_partition,
    "filter": ops.filter,
    "smooth": ops.smooth,
    "entropy": ops.entropy,
    "viterbi": ops.viterbi,
    "k_best": partial(ops.k_best, k=2),
    "sample": ops.sample,
}

# The examples are the same in every run: a failure is never a matter of luck.
examples = settings(deadline=None, max_examples=100, derandomize=True)


def _awkward() -> dict[str, Chain]:
    plain = random_chain(3, 4, (2,), seed=1)
    left_to_right = torch.where(torch.ones(3, 3).triu().bool(), plain.transition_logits, -math.inf)
    only_first = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)

    # Sequence 0 is possible, 1 has no initial state, 2 no way on at step 1, 3 no state at its last step,
    # and 4 would be impossible at step 3 but ends before.
    possible = random_chain(3, 4, (5,), transitions="each", seed=2)
    possible.initial_logits[1] = -math.inf
    possible.transition_logits[2, 1] = -math.inf
    possible.observation_logits[3, 3] = -math.inf
    possible.observation_logits[4, 3] = -math.inf

    def ragged(*lengths: int, **kwargs) -> Chain:
        return random_chain(3, 4, (len(lengths),), lengths=torch.tensor(lengths), seed=3, **kwargs)

    return {
        "no_steps": random_chain(3, 0, (2,)),
        "one_state": random_chain(1, 4, (2,)),
        "one_state_each": random_chain(1, 4, (2,), transitions="each"),
        "one_step_shared": random_chain(3, 1, (2,)),
        "one_step_constant": random_chain(3, 1, (2,), transitions="constant"),
        "one_step_each": random_chain(3, 1, (2,), transitions="each"),
        "one_state_one_step": random_chain(1, 1),
        "two_steps_shared": random_chain(3, 2, (2,)),
        "two_steps_each": random_chain(3, 2, (2,), transitions="each"),
        "no_batch_shared": random_chain(3, 4),
        "no_batch_constant": random_chain(3, 4, transitions="constant"),
        "no_batch_each": random_chain(3, 4, transitions="each"),
        "batch_of_batches": random_chain(2, 3, (2, 1, 3), transitions="each", lengths="ragged", poison=True),
        "length_0": ragged(0, 4),
        "all_lengths_0": ragged(0, 0),
        "all_lengths_0_poisoned": ragged(0, 0, transitions="each", poison=True),
        "all_lengths_1_poisoned": ragged(1, 1, transitions="each", poison=True),
        "ragged_shared": ragged(4, 0, 1, 2, 3, poison=True),
        "ragged_constant": ragged(4, 0, 1, 2, 3, transitions="constant", poison=True),
        "ragged_each": ragged(4, 0, 1, 2, 3, transitions="each", poison=True),
        "ragged_int32": plain._replace(lengths=torch.tensor([2, 3], dtype=torch.int32)),
        "lengths_make_the_batch": random_chain(3, 4, lengths=torch.tensor([3, 1, 4])),
        "one_length_for_all": random_chain(3, 4, (2,), lengths=torch.tensor(2), poison=True),
        "left_to_right": plain._replace(initial_logits=only_first, transition_logits=left_to_right),
        "deterministic_cycle": plain._replace(transition_logits=torch.eye(3, dtype=torch.float64).roll(1, 1).log()),
        "many_impossible": random_chain(3, 4, (6,), transitions="each", impossible=0.4, lengths="ragged", seed=4),
        "impossible_sequences": possible._replace(lengths=torch.tensor([4, 4, 3, 4, 3])),
        "nothing_possible": random_chain(3, 4, (2,), impossible=1.0),
        "broadcast_shared": random_chain(3, 4, (2, 3), broadcast=True, lengths="ragged", poison=True),
        "broadcast_each": random_chain(3, 4, (2, 3), transitions="each", broadcast=True, lengths="ragged", poison=True),
        "missing_batch_dims": Chain(
            random_chain(3, 4, (2, 1)).initial_logits,
            random_chain(3, 4, (3,), transitions="each").transition_logits,
            random_chain(3, 4).observation_logits,
        ),
        "scattered_memory": random_chain(3, 4, (2, 3), contiguous=False, lengths="ragged", poison=True),
        "scattered_memory_each": random_chain(3, 4, (2, 3), transitions="each", contiguous=False),
        "expanded_memory": Chain(
            random_chain(3, 4).initial_logits.expand(2, 3),
            random_chain(3, 4).transition_logits.expand(2, 3, 3, 3),
            random_chain(3, 4).observation_logits.expand(2, 4, 3),
        ),
        "far_from_zero": random_chain(3, 4, (3,), scale=1000.0),
        "all_equal": random_chain(3, 4, (2,), scale=0.0),
    }


AWKWARD = _awkward()


def derivatives(op, chain: Chain, order: int) -> dict[str, Tensor]:
    """The value of a differentiable op, its gradients, Hessian-vector products and so on, in random directions.

    The slope along a random direction of the potentials is a number; its gradient is the next order.
    """
    generator = torch.Generator().manual_seed(0)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    leaves = chain.requires_grad().logits
    value = op(*leaves, lengths=chain.lengths)
    found = {"value": value.detach()}
    slope = (direction(value) * value).sum()
    for n in range(1, order + 1):
        grads = torch.autograd.grad(slope, leaves, create_graph=n < order, materialize_grads=n > 1)
        for name, grad in zip(Chain._fields, grads, strict=False):
            found[f"derivative {n} of {name}"] = grad.detach()
        slope = sum((direction(grad) * grad).sum() for grad in grads)
    return found


def path_log_prob(chain: Chain, states: Tensor) -> Tensor:
    """The potential of given paths (..., T), batch dimensions those of the chain. A path of -1 alone has -inf."""
    batch_shape = states.shape[:-1]
    num_steps, num_states = chain.observation_logits.shape[-2:]
    initial = chain.initial_logits.expand(*batch_shape, num_states)
    transition = chain.transition_logits.expand(*batch_shape, max(num_steps - 1, 0), num_states, num_states)
    observation = chain.observation_logits.expand(*batch_shape, num_steps, num_states)
    lengths = torch.tensor(num_steps) if chain.lengths is None else chain.lengths
    result = torch.zeros(batch_shape, dtype=observation.dtype)
    for index in product(*map(range, batch_shape)):
        path = states[index].tolist()
        length = int(lengths.expand(batch_shape)[index])
        assert path[length:] == [-1] * (num_steps - length)
        if length and path[0] == -1:
            assert path == [-1] * num_steps
            result[index] = -math.inf
            continue
        assert all(0 <= state < num_states for state in path[:length])
        for t in range(length):
            result[index] += observation[index][t, path[t]]
            result[index] += initial[index][path[0]] if t == 0 else transition[index][t - 1, path[t - 1], path[t]]
    return result
