import math
from functools import partial

import pytest
import torch
from hypothesis import given

from pyrohmm import ops
from pyrohmm.ops.forward_backward.api import value_and_gradient
from pyrohmm.testing import Chain, assert_close_to_oracle, assert_within_budget, enumeration, random_chain
from pyrohmm.testing.strategies import chains
from tests.ops.cases import AWKWARD, derivatives, examples

awkward = pytest.mark.parametrize("chain", AWKWARD.values(), ids=AWKWARD)


def assert_derivatives_are_the_oracles(op, oracle, chain: Chain, order: int) -> None:
    ours, exact = derivatives(op, chain, order), derivatives(oracle, chain, order)
    for what in exact:
        assert_close_to_oracle(ours[what], exact[what])
    for n in range(1, order + 1):
        for name, logits in zip(Chain._fields, chain.logits, strict=False):
            what = f"derivative {n} of {name}"
            assert not ours[what][logits.isnan()].any(), f"{what} is not exactly zero in the padding"


@awkward
def test_log_partition_and_its_derivatives(chain, impl):
    assert_derivatives_are_the_oracles(partial(ops.log_partition, impl=impl), enumeration.log_partition, chain, 2)


@examples
@given(chain=chains())
def test_log_partition_and_its_derivatives_of_random_chains(chain, quick_impl):
    assert_derivatives_are_the_oracles(partial(ops.log_partition, impl=quick_impl), enumeration.log_partition, chain, 2)


def finite_evidence(filter, *logits, lengths):
    """A random linear function of all that `filter` returns and is finite, one number a sequence."""
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for values, dims in zip(filter(*logits, lengths=lengths), (2, 1), strict=True):
        weights = torch.randn(values.shape, generator=generator, dtype=values.dtype)
        total = total + (weights * values.where(values.isfinite(), 0.0)).flatten(values.dim() - dims).sum(-1)
    return total


@awkward
def test_value_and_gradient_without_a_graph(chain, impl):
    logits = [x.detach() for x in chain.logits]
    value, gradient = value_and_gradient(*logits, lengths=chain.lengths, impl=impl)
    leaves = [x.clone().requires_grad_() for x in logits]
    expected = ops.log_partition(*leaves, lengths=chain.lengths, impl=impl)
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad
    for got, wanted, leaf in zip(gradient, torch.autograd.grad(expected.sum(), leaves), leaves, strict=True):
        assert got.shape == leaf.shape and not got.requires_grad
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "name",
    ["ragged_shared", "ragged_constant", "ragged_each", "many_impossible", "left_to_right", "broadcast_each"]
    + ["scattered_memory", "far_from_zero"],
)
def test_derivatives_of_filter(name, impl):
    ours, exact = partial(ops.filter, impl=impl), enumeration.filter
    chain = AWKWARD[name]
    assert_derivatives_are_the_oracles(partial(finite_evidence, ours), partial(finite_evidence, exact), chain, 1)


@awkward
def test_entropy_and_its_gradient(chain, impl):
    assert_derivatives_are_the_oracles(partial(ops.entropy, impl=impl), enumeration.entropy, chain, 1)


@examples
@given(chain=chains())
def test_entropy_and_its_gradient_of_random_chains(chain, quick_impl):
    assert_derivatives_are_the_oracles(partial(ops.entropy, impl=quick_impl), enumeration.entropy, chain, 1)


def expectation(smooth, transitions, *logits, lengths):
    """A random linear function of all marginals and of log Z, one number a sequence."""
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for values, dims in zip(smooth(*logits, lengths=lengths, transitions=transitions), (0, 2, -1), strict=True):
        dims = (2 if transitions == "sum" else 3) if dims < 0 else dims
        weights = torch.randn(values.shape, generator=generator, dtype=values.dtype)
        total = total + (weights * values).flatten(values.dim() - dims).sum(-1) if dims else weights * values
    return total


@pytest.mark.parametrize("transitions", ["sum", "each"])
@awkward
def test_gradient_of_marginals(chain, impl, transitions):
    ours, oracle = (
        partial(expectation, smooth, transitions) for smooth in (partial(ops.smooth, impl=impl), enumeration.smooth)
    )
    assert_derivatives_are_the_oracles(ours, oracle, chain, 1)


@pytest.mark.parametrize("transitions", ["sum", "each"])
@examples
@given(chain=chains())
def test_gradient_of_marginals_of_random_chains(chain, quick_impl, transitions):
    ours, oracle = (
        partial(expectation, smooth, transitions)
        for smooth in (partial(ops.smooth, impl=quick_impl), enumeration.smooth)
    )
    assert_derivatives_are_the_oracles(ours, oracle, chain, 1)


@pytest.mark.parametrize(("name", "order"), [("log_partition", 3), ("entropy", 2), ("entropy", 3)])
def test_a_derivative_more_than_promised_is_right_or_an_error(name, order, impl):
    chain = random_chain(3, 4, (2,))
    op = partial(getattr(ops, name), impl=impl)
    exact = derivatives(getattr(enumeration, name), chain, order)
    try:
        ours = derivatives(op, chain, order)
    except RuntimeError:
        return
    for what in exact:
        assert_close_to_oracle(ours[what], exact[what])


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_log_partition_derivatives_by_finite_differences(transitions, impl):
    chain = random_chain(2, 3, (2,), transitions=transitions, lengths=torch.tensor([3, 2]), seed=5)
    leaves = chain.requires_grad().logits
    op = partial(ops.log_partition, lengths=chain.lengths, impl=impl)
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradient_of_one_argument_alone(which, impl):
    chain = random_chain(3, 4, (2,), lengths="ragged", seed=6)
    arguments = list(chain.logits)
    leaf = arguments[which] = arguments[which].requires_grad_()
    grads = []
    for op in (partial(ops.log_partition, impl=impl), enumeration.log_partition):
        (first,) = torch.autograd.grad(op(*arguments, lengths=chain.lengths).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        grads.append((first.detach(), second))
    assert_close_to_oracle(*(first for first, _ in grads))
    assert_close_to_oracle(*(second for _, second in grads))


def test_gradient_flows_to_what_the_potentials_were_made_of(impl):
    weights = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    chain = random_chain(3, 4, (2,))
    results = []
    for op in (partial(ops.log_partition, impl=impl), enumeration.log_partition):
        log_z = op(chain.initial_logits, weights.log_softmax(-1), chain.observation_logits @ weights)
        results.append(torch.autograd.grad(log_z.sum(), weights)[0])
    assert_close_to_oracle(*results)


def test_no_graph_without_gradients(impl):
    assert not ops.log_partition(*random_chain().logits, impl=impl).requires_grad
    with torch.no_grad():
        assert not ops.log_partition(*random_chain().requires_grad().logits, impl=impl).requires_grad


def assert_filter_is_the_oracles(chain: Chain, impl: str) -> None:
    ours = ops.filter(*chain.logits, lengths=chain.lengths, impl=impl)
    exact = enumeration.filter(*chain.logits, lengths=chain.lengths)
    assert_close_to_oracle(ours.log_probs, exact.log_probs)
    # After an impossible step, p(x_t | x_<t) has no meaning: only the sum over time is fixed, -inf.
    impossible = (exact.log_evidence == -math.inf).cumsum(-1) > 1
    assert_close_to_oracle(ours.log_evidence.masked_fill(impossible, 0), exact.log_evidence.masked_fill(impossible, 0))
    log_z = enumeration.log_partition(*chain.logits, lengths=chain.lengths)
    assert_close_to_oracle(ours.log_evidence.sum(-1), log_z)


@awkward
def test_filter(chain, impl):
    assert_filter_is_the_oracles(chain, impl)


@examples
@given(chain=chains())
def test_filter_of_random_chains(chain, quick_impl):
    assert_filter_is_the_oracles(chain, quick_impl)


def assert_smooth_is_the_oracles(chain: Chain, impl: str, transitions) -> None:
    ours = ops.smooth(*chain.logits, lengths=chain.lengths, transitions=transitions, impl=impl)
    exact = enumeration.smooth(*chain.logits, lengths=chain.lengths, transitions=transitions)
    for name in exact._fields:
        assert_close_to_oracle(getattr(ours, name), getattr(exact, name))


@pytest.mark.parametrize("transitions", ["sum", "each"])
@awkward
def test_smooth(chain, impl, transitions):
    assert_smooth_is_the_oracles(chain, impl, transitions)


@pytest.mark.parametrize("transitions", ["sum", "each"])
@examples
@given(chain=chains())
def test_smooth_of_random_chains(chain, quick_impl, transitions):
    assert_smooth_is_the_oracles(chain, quick_impl, transitions)


def test_smooth_sums_transitions_by_default(impl):
    chain = random_chain(3, 4, (2,))
    assert ops.smooth(*chain.logits, impl=impl).transition_marginals.shape == (2, 3, 3)


def test_smooth_and_filter_leave_zeros_past_the_length(impl):
    chain = random_chain(3, 5, (3,), transitions="each", lengths=torch.tensor([0, 2, 5]), poison=True)
    smoothed = ops.smooth(*chain.logits, lengths=chain.lengths, transitions="each", impl=impl)
    filtered = ops.filter(*chain.logits, lengths=chain.lengths, impl=impl)
    for i, length in enumerate([0, 2, 5]):
        assert (smoothed.state_marginals[i, length:] == 0).all()
        assert (smoothed.transition_marginals[i, max(length - 1, 0) :] == 0).all()
        assert (filtered.log_probs[i, length:] == -math.inf).all()
        assert (filtered.log_evidence[i, length:] == 0).all()


# Beyond the reach of the oracle.


def product_of_matrices(initial, transition, observation, *, lengths):
    """log Z in linear space, with no care for underflow: an independent computation where nothing underflows."""
    message = (initial + observation[:, 0]).exp()
    for t in range(1, observation.shape[1]):
        following = torch.einsum("bi,bij->bj", message, transition[:, t - 1].exp()) * observation[:, t].exp()
        message = torch.where((t < lengths).unsqueeze(-1), following, message)
    return message.sum(-1).log()


def test_larger_chains_against_linear_space(impl):
    lengths = torch.tensor([40, 1, 17, 39])
    chain = random_chain(7, 40, (4,), transitions="each", impossible=0.2, lengths=lengths, seed=7)
    assert_derivatives_are_the_oracles(partial(ops.log_partition, impl=impl), product_of_matrices, chain, 2)


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_larger_chains_agree_with_themselves(transitions, impl):
    lengths = torch.tensor([60, 2, 33])
    chain = random_chain(8, 60, (3,), transitions=transitions, lengths=lengths, scale=3.0, seed=8)
    filtered = ops.filter(*chain.logits, lengths=lengths, impl=impl)
    smoothed = ops.smooth(*chain.logits, lengths=lengths, transitions="each", impl=impl)
    summed = ops.smooth(*chain.logits, lengths=lengths, impl=impl)
    valid = torch.arange(60) < lengths.unsqueeze(-1)
    states, pairs = smoothed.state_marginals, smoothed.transition_marginals

    assert_close_to_oracle(filtered.log_evidence.sum(-1), smoothed.log_partition)
    assert_close_to_oracle(states.sum(-1), valid.double())
    assert_close_to_oracle(pairs.sum(-1), states[:, :-1] * valid[:, 1:, None])
    assert_close_to_oracle(pairs.sum(-2), states[:, 1:])
    assert_close_to_oracle(pairs.sum(-3), summed.transition_marginals)
    last = (torch.arange(3), lengths - 1)
    assert_close_to_oracle(filtered.log_probs.exp()[last], states[last])


# float32.


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_float32_errs_no_more_than_twice_what_listing_paths_does(transitions, scale, impl):
    single = random_chain(3, 6, (8,), transitions=transitions, impossible=0.1, scale=scale, dtype=torch.float32)
    double = single.to(torch.float64)
    for name in ("log_partition", "state_marginals", "transition_marginals"):
        assert_within_budget(
            getattr(ops.smooth(*single.logits, impl=impl), name),
            getattr(enumeration.smooth(*single.logits), name),
            getattr(enumeration.smooth(*double.logits), name),
        )


@pytest.mark.parametrize("transitions", ["shared", "each"])
def test_float32_errs_no_more_than_twice_what_the_reference_does(transitions, impl):
    single = random_chain(16, 200, (4,), transitions=transitions, lengths="ragged", dtype=torch.float32)
    double = single.to(torch.float64)
    ours, reference, exact = (
        ops.smooth(*chain.logits, lengths=chain.lengths, impl=which)
        for chain, which in ((single, impl), (single, "reference"), (double, "reference"))
    )
    for name in exact._fields:
        assert_within_budget(getattr(ours, name), getattr(reference, name), getattr(exact, name))
    # The reference itself does not lose digits with time: messages are normalised, log Z is summed in float64.
    assert_within_budget(ours.log_partition, exact.log_partition.float(), exact.log_partition)
    assert (ours.state_marginals - exact.state_marginals).abs().max() < 1e-5


# Long sequences of a homogeneous chain with symmetric transitions A and the same potentials log b at every step have
# closed forms in the eigenvectors of M = D^1/2 A D^1/2, D = diag(b): Z = p' M^(T-1) q with p = D^1/2 pi, q = D^1/2 1.
LONG = 20_000
STAY = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
POTENTIAL = torch.tensor([1.5, 0.9], dtype=torch.float64)
EIGENVALUES, EIGENVECTORS = torch.linalg.eigh(POTENTIAL.sqrt().diag() @ STAY @ POTENTIAL.sqrt().diag())


def long_chain(dtype: torch.dtype, num_steps: int) -> Chain:
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return Chain(half.log(), STAY.log(), POTENTIAL.log().repeat(num_steps, 1)).to(dtype)


def long_log_partition() -> float:
    weights = (0.5 * POTENTIAL.sqrt() @ EIGENVECTORS) * (POTENTIAL.sqrt() @ EIGENVECTORS)
    ratios = (EIGENVALUES / EIGENVALUES[-1]) ** (LONG - 1)
    return ((LONG - 1) * EIGENVALUES[-1].log() + (weights * ratios).sum().log()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_long_sequence_against_its_closed_form(dtype, tolerance, quick_impl):
    chain = long_chain(dtype, LONG)
    result = ops.smooth(*chain.logits, impl=quick_impl)
    assert result.log_partition.item() == pytest.approx(long_log_partition(), rel=tolerance)

    top = EIGENVECTORS[:, -1]  # far from both ends, p(z_t) = top^2
    middle = result.state_marginals[LONG // 2].double()
    torch.testing.assert_close(middle, top.square(), rtol=0, atol=10 * tolerance)
    M = POTENTIAL.sqrt().diag() @ STAY @ POTENTIAL.sqrt().diag()
    pairs = top.unsqueeze(-1) * M * top / EIGENVALUES[-1]
    # Both ends count otherwise, by a few transitions of the 20 000.
    counts = result.transition_marginals.double() / (LONG - 1)
    torch.testing.assert_close(counts, pairs, rtol=0, atol=5e-4)
    # Counting in float32 would lose a digit more with every tenfold of T.
    assert counts.sum().item() == pytest.approx(1, rel=2 * tolerance)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_states", [17, 130])
def test_what_is_wrong_with_a_matrix_does_not_add_up_over_time(num_states, seed, quick_impl):
    """Every step takes the same matrix: a part in 10^7 at each would be far more than rounding where log Z is small."""
    chain = random_chain(num_states, 500, (2,), scale=0.3, seed=seed).to(torch.float32)
    # As a network has them. In float32 the difference of two of these may be rounded to one side in most entries.
    weights = torch.randn(num_states, num_states, generator=torch.Generator().manual_seed(seed))
    chain = chain._replace(transition_logits=weights.log_softmax(-1))
    level = ops.log_partition(*chain.logits).mean() / 500 + 0.02
    chain = chain._replace(observation_logits=chain.observation_logits - level)
    exact = ops.log_partition(*chain.to(torch.float64).logits)
    ours, reference = (ops.log_partition(*chain.logits, impl=impl) for impl in (quick_impl, "reference"))
    assert_within_budget(ours, reference, exact)


@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize(("num_states", "batch"), [(2, 1), (3, 40), (16, 3), (40, 1), (70, 2), (600, 1)])
def test_numbers_of_any_size_add_up_over_time(num_states, batch, level, quick_impl):
    """Messages that grow, or shrink, by a large factor at every step: flat potentials."""
    num_steps = 700  # 2^700 and 1e30^700 are beyond any float
    initial = torch.zeros(num_states)
    transition = torch.full((num_states, num_states), level)
    observation = torch.full((batch, num_steps, num_states), level)
    expected = num_steps * math.log(num_states) + (2 * num_steps - 1) * level
    result = ops.smooth(initial, transition, observation, impl=quick_impl)
    torch.testing.assert_close(result.log_partition, torch.full((batch,), expected), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(result.state_marginals, torch.full_like(observation, 1 / num_states))
    evidence = ops.filter(initial, transition, observation, impl=quick_impl).log_evidence.double().sum(-1)
    torch.testing.assert_close(evidence, torch.full((batch,), expected).double(), rtol=1e-6, atol=1e-3)
    assert ops.log_partition(initial, transition, observation, impl=quick_impl).isfinite().all()


def test_long_sequence_has_gradients_and_entropy_in_float32(quick_impl):
    num_steps = 4000  # the derivatives of twenty thousand steps take too long here
    chain = long_chain(torch.float32, num_steps).requires_grad()
    log_z = ops.log_partition(*chain.logits, impl=quick_impl)
    initial, transition, observation = torch.autograd.grad(log_z, chain.logits)
    torch.testing.assert_close(observation.sum(-1), torch.ones(num_steps), rtol=0, atol=1e-5)
    torch.testing.assert_close(initial, observation[0], rtol=0, atol=1e-5)
    assert transition.double().sum().item() == pytest.approx(num_steps - 1, rel=2e-6)

    # The posterior is a Markov chain with P_ij = M_ij top_j / (lambda top_i); its two ends add a constant.
    top = EIGENVECTORS[:, -1].abs()
    M = POTENTIAL.sqrt().diag() @ STAY @ POTENTIAL.sqrt().diag()
    P = M * top / (EIGENVALUES[-1] * top.unsqueeze(-1))
    rate = -(top.square().unsqueeze(-1) * P * P.log()).sum().item()
    short, long = (
        ops.entropy(*long_chain(dtype, steps).logits, impl=quick_impl).item()
        for dtype, steps in ((torch.float64, 100), (torch.float32, num_steps))
    )
    assert long - short == pytest.approx((num_steps - 100) * rate, rel=1e-5)
