"""Equal uniform numbers give equal paths, whatever the number of states, in spans of time or not; and what few random
numbers ever reach.
"""

import pytest
import torch
from torch import Tensor

from pyrohmm import ops
from pyrohmm.ops import spans
from pyrohmm.ops.chain import clear_padding, fit_chain
from pyrohmm.ops.sampling import gpu, reference
from pyrohmm.testing import Chain, random_chain
from tests.ops.cases import AWKWARD

MORE = {
    "two states": random_chain(2, 9, (40,), lengths="ragged", poison=True),
    "17 states": random_chain(17, 6, (5,), transitions="each", impossible=0.1, lengths="ragged", poison=True),
    "33 states": random_chain(33, 6, (2, 3), transitions="constant", broadcast=True, lengths="ragged", poison=True),
    "64 states": random_chain(64, 6, (3,), lengths="ragged", poison=True),
    "65 states": random_chain(65, 4, (3,), transitions="each", lengths="ragged", poison=True),
    "200 states": random_chain(200, 4, (2,), impossible=0.6, lengths="ragged", poison=True),
    "1500 states": random_chain(1500, 3),
}


@pytest.fixture
def both(pytestconfig):
    """A function that returns the paths of the kernel and those of the reference."""
    device = pytestconfig.getoption("--device")

    def sample(chain: Chain, uniforms: Tensor, log_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if log_probs is None:
            log_probs, _ = ops.filter(*chain.logits, lengths=chain.lengths, impl="reference")
        fitted = fit_chain(*(logits.to(device) for logits in chain.logits), chain.lengths)
        given = log_probs.to(device), uniforms.to(device)
        return gpu.sample(fitted, *given), reference.sample(clear_padding(fitted), *given)

    return sample


@pytest.mark.parametrize(("sample_shape", "dtype"), [((), torch.float64), ((3, 2), torch.float32)])
@pytest.mark.parametrize("chain", [*AWKWARD.values(), *MORE.values()], ids=[*AWKWARD, *MORE])
def test_the_paths_are_the_references(chain, sample_shape, dtype, both):
    shape = (*sample_shape, *chain.batch_shape, chain.observation_logits.shape[-2])
    uniforms = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, expected = both(chain.to(dtype), uniforms)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("num_states", [5, 65])
def test_no_state_without_mass_at_the_ends_of_the_range(uniform, num_states, both):
    chain = random_chain(num_states, 6, (3,), impossible=0.7, seed=1)
    chain.observation_logits[..., [0, -1]] = -torch.inf
    chain.observation_logits[..., 1:3] = 0.0
    chain.transition_logits[1:3, 1:3] = 0.0
    chain.initial_logits[..., 1:3] = 0.0
    ours, expected = both(chain, torch.full((3, 6), uniform, dtype=torch.float64))
    assert torch.equal(ours, expected)
    assert (ours > 0).all() and (ours < num_states - 1).all()


@pytest.mark.parametrize("num_states", [3, 65])
def test_a_path_that_ends_on_the_way_back_is_none(num_states, both):
    chain = random_chain(num_states, 5, (4,))
    log_probs, _ = ops.filter(*chain.logits, impl="reference")
    log_probs[1, 2] = -torch.inf
    ours, expected = both(chain, torch.full((4, 5), 0.5, dtype=torch.float64), log_probs)
    assert torch.equal(ours, expected)
    assert (ours[1] == -1).all() and (ours[[0, 2, 3]] >= 0).all()


@pytest.fixture
def in_spans(pytestconfig, monkeypatch):
    """A function that returns the paths of the kernel in spans of two steps, and those of one walk through time."""
    device = pytestconfig.getoption("--device")

    def sample(chain: Chain, uniforms: Tensor, log_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if log_probs is None:
            log_probs, _ = ops.filter(*chain.logits, lengths=chain.lengths, impl="reference")
        fitted = fit_chain(*(logits.to(device) for logits in chain.logits), chain.lengths)
        given = fitted, log_probs.to(device), uniforms.to(device)
        at_once = gpu.sample(*given)
        monkeypatch.setattr(spans, "steps_of_span", lambda num_steps, *_: 2 if num_steps >= 2 else None)
        return gpu.sample(*given), at_once

    return sample


FEW = {
    "two states": MORE["two states"],
    "17 states": random_chain(17, 3, (2,), transitions="each", impossible=0.1, lengths="ragged", poison=True),
}


@pytest.mark.parametrize(("sample_shape", "dtype"), [((), torch.float64), ((2,), torch.float32)])
@pytest.mark.parametrize("chain", [*AWKWARD.values(), *FEW.values()], ids=[*AWKWARD, *FEW])
def test_the_paths_are_the_same_in_spans(chain, sample_shape, dtype, in_spans):
    shape = (*sample_shape, *chain.batch_shape, chain.observation_logits.shape[-2])
    uniforms = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cut, at_once = in_spans(chain.to(dtype), uniforms)
    assert torch.equal(cut, at_once)


@pytest.mark.parametrize("num_steps", [7, 8])
def test_a_path_that_ends_on_the_way_back_is_none_in_spans(num_steps, in_spans):
    sequences = 2 * num_steps
    chain = random_chain(3, num_steps, (sequences,), impossible=0.3, transitions="each", seed=2)
    log_probs, _ = ops.filter(*chain.logits, impl="reference")
    at = torch.arange(num_steps)
    log_probs[at, at] = -torch.inf
    cut, at_once = in_spans(chain, torch.rand(sequences, num_steps, dtype=torch.float64), log_probs)
    assert torch.equal(cut, at_once)
    assert (cut[:num_steps] == -1).all() and (cut[num_steps:] >= 0).any()


@pytest.mark.parametrize(("sample_shape", "batch"), [((2,), (0,)), ((0,), (2,))])
def test_no_paths_in_spans(sample_shape, batch, in_spans):
    cut, at_once = in_spans(random_chain(2, 5, batch), torch.zeros(*sample_shape, *batch, 5, dtype=torch.float64))
    assert torch.equal(cut, at_once)


@pytest.mark.slow
def test_a_long_path_is_cut_of_its_own_accord(both):
    chain = random_chain(3, 2111, (2,), lengths=torch.tensor([2111, 1000]), poison=True)
    uniforms = torch.rand(2, 2111, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, expected = both(chain, uniforms)
    assert torch.equal(ours, expected)
