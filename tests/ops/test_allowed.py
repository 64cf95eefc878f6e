"""A mask of allowed states, as potentials of -inf, conditions every operation on it."""

import torch

from pyrohmm import ops
from pyrohmm.testing import enumeration, random_chain


def test_every_operation(impl):
    initial, transition, observation = random_chain(num_states=3, num_steps=5, batch_shape=(2,), seed=0).logits
    allowed = torch.rand(observation.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    allowed[..., 1] = True
    chain = initial, transition, observation.masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(ops.log_partition(*chain, impl=impl), enumeration.log_partition(*chain))
    smoothed = ops.smooth(*chain, impl=impl).state_marginals
    torch.testing.assert_close(smoothed, enumeration.smooth(*chain).state_marginals)
    assert (smoothed[~allowed] == 0).all()
    filtered = ops.filter(*chain, impl=impl).log_probs
    assert (filtered[~allowed] == -torch.inf).all() and filtered[allowed].isfinite().all()
    torch.testing.assert_close(ops.entropy(*chain, impl=impl), enumeration.entropy(*chain))
    drawn = ops.sample(*chain, sample_shape=(20,), generator=torch.Generator().manual_seed(0), impl=impl)
    for states in (ops.viterbi(*chain, impl=impl).states, *drawn):
        assert allowed.gather(-1, states.unsqueeze(-1)).all()


def test_the_best_paths(listing_impl):
    initial, transition, observation = random_chain(num_states=3, num_steps=4, seed=0).logits
    allowed = torch.tensor([[True, False, True]]).expand(4, 3)
    chain = initial, transition, observation.masked_fill(~allowed, -torch.inf)
    assert (ops.k_best(*chain, 5, impl=listing_impl).states != 1).all()
