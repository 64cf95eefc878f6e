"""The oracle itself: against numbers worked out by hand, and against identities that need no list of paths."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from pyrohmm.testing import Chain, enumeration, random_chain
from pyrohmm.testing.strategies import chains

examples = settings(deadline=None, max_examples=40, derandomize=True)

# Two states, two steps; every number below can be checked on paper.
# Path:      00               01               10               11
# Weight:    .6*.5*.7*.1      .6*.5*.3*.4      .4*.2*.2*.1      .4*.2*.8*.4
#            = .021           = .036           = .0016          = .0256           sum .0842
INITIAL = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
TRANSITION = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64).log()
OBSERVATION = torch.tensor([[0.5, 0.2], [0.1, 0.4]], dtype=torch.float64).log()
BY_HAND = Chain(INITIAL, TRANSITION, OBSERVATION)
WEIGHTS = torch.tensor([0.021, 0.036, 0.0016, 0.0256], dtype=torch.float64)


def test_paths_are_all_different_and_in_order():
    paths = enumeration.paths(3, 2)
    assert paths.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert enumeration.paths(5, 0).shape == (1, 0)
    assert enumeration.paths(1, 7).tolist() == [[0] * 7]


def test_too_many_paths_is_an_error():
    with pytest.raises(ValueError, match=r"num_states=10 and num_steps=9"):
        enumeration.paths(10, 9)


def test_path_log_probs_by_hand():
    assert_close(enumeration.path_log_probs(*BY_HAND.logits).exp(), WEIGHTS)


def test_log_partition_by_hand():
    assert math.isclose(enumeration.log_partition(*BY_HAND.logits).exp().item(), 0.0842)


def test_filter_by_hand():
    result = enumeration.filter(*BY_HAND.logits)
    first = torch.tensor([0.3, 0.08], dtype=torch.float64)  # .6*.5 and .4*.2
    last = torch.tensor([0.021 + 0.0016, 0.036 + 0.0256], dtype=torch.float64)
    assert_close(result.log_probs.exp(), torch.stack([first / first.sum(), last / last.sum()]))
    assert_close(result.log_evidence.exp(), torch.stack([first.sum(), last.sum() / first.sum()]))


@pytest.mark.parametrize("transitions", ["sum", "each"])
def test_smooth_by_hand(transitions):
    result = enumeration.smooth(*BY_HAND.logits, transitions=transitions)
    w00, w01, w10, w11 = (WEIGHTS / WEIGHTS.sum()).tolist()
    states = torch.tensor([[w00 + w01, w10 + w11], [w00 + w10, w01 + w11]], dtype=torch.float64)
    pairs = torch.tensor([[w00, w01], [w10, w11]], dtype=torch.float64)
    assert_close(result.log_partition, WEIGHTS.sum().log())
    assert_close(result.state_marginals, states)
    assert_close(result.transition_marginals, pairs if transitions == "sum" else pairs[None])


def test_viterbi_and_k_best_by_hand():
    best = enumeration.viterbi(*BY_HAND.logits)
    assert best.states.tolist() == [0, 1]
    assert math.isclose(best.log_prob.exp().item(), 0.036)
    several = enumeration.k_best(*BY_HAND.logits, 5)
    assert several.states.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0], [-1, -1]]
    assert_close(several.log_prob.exp(), torch.tensor([0.036, 0.0256, 0.021, 0.0016, 0.0], dtype=torch.float64))


def test_entropy_by_hand():
    p = WEIGHTS / WEIGHTS.sum()
    assert_close(enumeration.entropy(*BY_HAND.logits), -(p * p.log()).sum())


def test_unknown_transitions_is_an_error():
    with pytest.raises(ValueError, match=r"transitions must be 'sum' or 'each', but got 'all'"):
        enumeration.smooth(*BY_HAND.logits, transitions="all")  # pyright: ignore[reportArgumentType]


def matrix_product(chain: Chain) -> torch.Tensor:
    """Z = pi' D_1 A_1 D_2 A_2 ... D_T 1 of a chain without a batch."""
    num_steps, num_states = chain.observation_logits.shape
    length = num_steps if chain.lengths is None else int(chain.lengths)
    transition = chain.transition_logits.expand(num_steps - 1, num_states, num_states)
    if length == 0:
        return torch.ones((), dtype=torch.float64)
    product = chain.initial_logits.exp() * chain.observation_logits[0].exp()
    for t in range(1, length):
        product = product @ transition[t - 1].exp() * chain.observation_logits[t].exp()
    return product.sum()


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
@pytest.mark.parametrize("length", [None, 0, 1, 2, 5])
@pytest.mark.parametrize("impossible", [0.0, 0.3])
def test_log_partition_is_a_product_of_matrices(transitions, length, impossible):
    chain = random_chain(
        num_states=3,
        num_steps=5,
        transitions=transitions,
        impossible=impossible,
        lengths=None if length is None else torch.tensor(length),
        poison=True,
        seed=3,
    )
    assert_close(enumeration.log_partition(*chain.logits, lengths=chain.lengths), matrix_product(chain).log())


@examples
@given(chains())
def test_every_sequence_of_a_batch_is_what_it_is_alone(chain):
    whole = enumeration.smooth(*chain.logits, lengths=chain.lengths, transitions="each")
    decoded = enumeration.viterbi(*chain.logits, lengths=chain.lengths)
    num_steps, num_states = chain.observation_logits.shape[-2:]
    batch = chain.batch_shape
    transition = chain.transition_logits.expand(*batch, num_steps - 1, num_states, num_states)
    lengths = torch.tensor(num_steps) if chain.lengths is None else chain.lengths
    for index in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)) if batch else [()]:
        index = tuple(index)
        n = int(lengths.expand(batch)[index])
        alone = (
            chain.initial_logits.expand(*batch, -1)[index],
            transition[index][: max(n - 1, 0)],
            chain.observation_logits.expand(*batch, -1, -1)[index][:n],
        )
        marginals = enumeration.smooth(*alone, transitions="each")
        assert_close(whole.log_partition[index], marginals.log_partition)
        assert_close(whole.state_marginals[index][:n], marginals.state_marginals)
        assert_close(whole.transition_marginals[index][: max(n - 1, 0)], marginals.transition_marginals)
        assert not whole.state_marginals[index][n:].any()
        assert not whole.transition_marginals[index][max(n - 1, 0) :].any()
        assert decoded.states[index].tolist() == enumeration.viterbi(*alone).states.tolist() + [-1] * (num_steps - n)


@examples
@given(chains())
def test_gradients_are_marginals(chain):
    chain = chain.requires_grad()
    result = enumeration.smooth(*chain.logits, lengths=chain.lengths, transitions="each")
    initial, transition, observation = torch.autograd.grad(result.log_partition.sum(), chain.logits)
    assert_close(observation, result.state_marginals.sum_to_size(*observation.shape).detach())
    assert_close(initial, result.state_marginals[..., 0, :].sum_to_size(*initial.shape).detach())
    pairs = result.transition_marginals.detach()
    if chain.transition_logits.dim() == 2:
        pairs = pairs.sum(-3)
    elif chain.transition_logits.shape[-3] != pairs.shape[-3]:
        pairs = pairs.sum(-3, keepdim=True)
    assert_close(transition, pairs.sum_to_size(*transition.shape))


@examples
@given(chains())
def test_results_agree_with_each_other(chain):
    arguments = {"lengths": chain.lengths}
    log_z = enumeration.log_partition(*chain.logits, **arguments)
    filtered = enumeration.filter(*chain.logits, **arguments)
    assert_close(filtered.log_evidence.sum(-1), log_z)

    smoothed = enumeration.smooth(*chain.logits, **arguments)
    each = enumeration.smooth(*chain.logits, **arguments, transitions="each")
    assert_close(each.transition_marginals.sum(-3), smoothed.transition_marginals)

    best = enumeration.k_best(*chain.logits, 3, **arguments)
    assert (best.log_prob.diff() <= 0).nan_to_num().logical_or(best.log_prob[..., 1:].isinf()).all()
    assert (best.log_prob[..., 0] <= log_z + 1e-12).all()
    entropy = enumeration.entropy(*chain.logits, **arguments)
    assert ((entropy > -1e-10) & entropy.isfinite()).all()
    # The most probable path alone carries at least exp(-entropy) of the posterior.
    possible = log_z > -math.inf
    assert (best.log_prob[..., 0] - log_z >= -entropy - 1e-10)[possible].all()


def test_second_derivatives_by_finite_differences():
    chain = random_chain(num_states=2, num_steps=3, batch_shape=(2,), seed=1)
    leaves = chain.requires_grad().logits
    assert torch.autograd.gradgradcheck(enumeration.log_partition, leaves)
    assert torch.autograd.gradcheck(enumeration.entropy, leaves)


@pytest.mark.parametrize("op", [enumeration.log_partition, enumeration.entropy])
def test_impossible_sequences_have_zero_gradients_of_every_order(op):
    chain = random_chain(num_states=2, num_steps=3, batch_shape=(2,), seed=1)
    chain.observation_logits[0, 1] = -math.inf
    leaves = chain.requires_grad().logits
    value = op(*leaves)
    first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g * torch.randn_like(g)).sum() for g in first), leaves, materialize_grads=True)
    for grad in (*first, *second):
        assert grad.isfinite().all()
    for grad in (first[0], first[2], second[0], second[2]):
        assert not grad[0].any()
        assert grad[1].any()


def test_float32_stays_float32():
    chain = random_chain(dtype=torch.float32)
    result = enumeration.smooth(*chain.logits)
    assert {result.log_partition.dtype, result.state_marginals.dtype, result.transition_marginals.dtype} == {
        torch.float32
    }
