"""The numerical contract on chains chosen to break it, against many digits or closed forms.

Each chain holds numbers that float32 can hold, so that one result of the oracle serves both dtypes.
"""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from pyrohmm import ops
from pyrohmm.testing import Chain, assert_close_to_oracle, poison_padding, random_chain
from tests.ops.oracle import Exact, assert_accurate, exact, in_log_space

NEVER = -math.inf
TINY = math.log(1e-300)


def draw(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flip(num_states: int, off: float) -> Tensor:
    """Staying costs nothing, any other transition `off`."""
    return torch.full((num_states, num_states), off, dtype=torch.float64).fill_diagonal_(0.0)


def left_to_right(num_states: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A start in the first state; each state is followed by itself or the next."""
    initial = torch.full((num_states,), NEVER, dtype=torch.float64)
    initial[0] = 0.0
    stay = draw(num_states, low=0.05, high=0.95, seed=seed)
    transition = stay.diag() + (1 - stay[:-1]).diag(1)
    transition[-1, -1] = 1.0
    return initial, transition.log()


def pushed_down_and_revived(num_steps: int, down: float, up: float) -> Tensor:
    """Evidence (1, T, 2) against the second state at every step but the last, which is all for it."""
    observation = torch.zeros(1, num_steps, 2, dtype=torch.float64)
    observation[0, :-1, 1] = -down
    observation[0, -1, 1] = up
    return observation


def impossible_steps() -> Chain:
    """Sequences that end at an impossible first, middle or last step, between possible ones."""
    chain = random_chain(3, 6, (6,), lengths=torch.tensor([6, 6, 6, 6, 4, 6]), seed=1)
    for sequence, step in enumerate([None, 0, 3, 5, 4, None]):
        if step is not None:  # that of the fifth sequence is past its end
            chain.observation_logits[sequence, step] = NEVER
    return chain


def one_path(num_states: int, num_steps: int) -> Chain:
    cycle = torch.eye(num_states, dtype=torch.float64).roll(1, 1).log()
    start = torch.eye(num_states, dtype=torch.float64).log()
    return Chain(start, cycle, draw(num_states, num_steps, num_states, low=-300.0))


def one_path_by_evidence(num_states: int, num_steps: int) -> Chain:
    chain = random_chain(num_states, num_steps, (2,), seed=2)
    seen = torch.randint(num_states, (2, num_steps, 1), generator=torch.Generator().manual_seed(0))
    only = torch.full_like(chain.observation_logits, NEVER).scatter(-1, seen, 0.0)
    return chain._replace(observation_logits=chain.observation_logits + only)


def of_all_difficulties(num_steps: int) -> Chain:
    """Sequences with their own transitions: mild, wide, with zeros, disconnected, left to right, impossible, ended."""
    K = 4
    initial, stepwise = left_to_right(K)
    wide = draw(K, K, low=TINY, seed=1)
    zeros = random_chain(K, 2, impossible=0.4, seed=3).transition_logits
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double().log()
    transition = torch.stack([torch.zeros(K, K).double(), wide, zeros, blocks, stepwise, wide + NEVER, wide])
    starts = torch.stack([*[torch.zeros(K).double()] * 4, initial, initial, initial])
    observation = draw(7, num_steps, K, low=-1.0, seed=4) * 10.0 ** torch.arange(7).remainder(4)[:, None, None]
    lengths = torch.tensor([num_steps, num_steps - 3, num_steps, num_steps, num_steps, num_steps, 0])
    return poison_padding(Chain(starts, transition.unsqueeze(1), observation, lengths))


def _cases() -> dict[str, Chain]:
    cases = {}
    for K in (1, 2, 3, 8, 17, 40, 130):
        num_steps = 9 if K < 100 else 4  # many digits take their time
        lengths = torch.tensor([num_steps, 0, 1, num_steps - 1])
        cases[f"{K}_states"] = random_chain(K, num_steps, (4,), lengths=lengths, scale=3.0, poison=True, seed=K)
        cases[f"{K}_states_with_zeros"] = random_chain(K, num_steps, (2,), impossible=0.3, scale=3.0, seed=K)
    for K in (1, 2, 8, 17):
        kwargs = {"transitions": "each", "lengths": torch.tensor([7, 0, 5]), "poison": True, "seed": K}
        cases[f"{K}_states_each"] = random_chain(K, 7, (3,), scale=3.0, **kwargs)
        cases[f"{K}_states_each_with_zeros"] = random_chain(K, 7, (3,), impossible=0.2, **kwargs)
    cases["no_steps"] = random_chain(3, 0, (2,))
    cases["all_lengths_0"] = random_chain(3, 5, (2,), lengths=torch.tensor([0, 0]), poison=True)

    plain = random_chain(5, 30, (3,), lengths=torch.tensor([30, 12, 29]), seed=5)
    to_tiny = torch.linspace(TINY, 0.0, 25, dtype=torch.float64).reshape(5, 5)
    cases["from_1_to_1e-300"] = plain._replace(transition_logits=to_tiny)
    cases["from_1_to_1e-300_each"] = plain._replace(transition_logits=draw(3, 29, 5, 5, low=TINY, seed=6))
    cases["from_1_to_1e-300_with_zeros"] = plain._replace(
        transition_logits=to_tiny.triu(-1).where(to_tiny < -50, NEVER)
    )
    cases["all_1e-300"] = plain._replace(transition_logits=torch.full((5, 5), TINY, dtype=torch.float64))
    cases["almost_deterministic"] = plain._replace(transition_logits=flip(5, TINY))
    cases["left_to_right"] = Chain(*left_to_right(8), draw(2, 40, 8, low=-3.0, seed=7))
    cases["left_to_right_wide"] = Chain(*left_to_right(8), draw(2, 40, 8, low=-1e3, seed=7))
    cases["one_path"] = one_path(5, 12)
    cases["one_path_by_evidence"] = one_path_by_evidence(5, 12)
    cases["impossible_steps"] = impossible_steps()
    cases["nothing_possible"] = random_chain(3, 5, (2,), impossible=1.0)
    cases["ties"] = random_chain(4, 10, (2,), scale=0.0)

    cases["evidence_of_1e4"] = plain._replace(observation_logits=draw(3, 30, 5, low=-1e4, seed=8))
    cases["evidence_of_1e4_on_1e-300"] = cases["evidence_of_1e4"]._replace(transition_logits=to_tiny)
    cases["evidence_of_1e4_each"] = cases["evidence_of_1e4"]._replace(transition_logits=draw(3, 29, 5, 5, seed=9).log())
    cases["far_from_zero"] = Chain(
        plain.initial_logits - 1e3, plain.transition_logits + 1e4, plain.observation_logits - 5e3, plain.lengths
    )
    start = torch.zeros(2, dtype=torch.float64)
    for name, off in {"mildly": -20.0, "at_300_nats": -300.0, "at_1e-300": TINY, "never": NEVER}.items():
        cases[f"revived_mixing_{name}"] = Chain(start, flip(2, off), pushed_down_and_revived(16, 40.0, 1e3))
        cases[f"stays_down_mixing_{name}"] = Chain(start, flip(2, off), pushed_down_and_revived(16, 40.0, -40.0))
    cases["revived_from_the_start"] = Chain(
        torch.tensor([0.0, -500.0]), flip(2, NEVER), pushed_down_and_revived(10, 0.0, 500.0)
    )
    allowed = draw(3, 30, 5, seed=10) < 0.6
    allowed[..., 0] = True
    for name, mask in {"-1e9": -1e9, "lowest": torch.finfo(torch.float32).min}.items():
        cases[f"masked_by_{name}"] = plain._replace(observation_logits=plain.observation_logits.where(allowed, mask))
    cases["of_all_difficulties"] = of_all_difficulties(20)
    cases["broadcast"] = random_chain(
        3, 6, (2, 3), transitions="constant", broadcast=True, lengths="ragged", poison=True
    )
    cases["broadcast_each"] = random_chain(3, 6, (2, 3), transitions="each", broadcast=True, impossible=0.1, seed=1)
    return {name: chain.to(torch.float32) for name, chain in cases.items()}


CASES = _cases()


@cache
def truth(name: str) -> Exact:
    return exact(CASES[name])


both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@both_dtypes
@pytest.mark.parametrize("name", CASES)
def test_every_result(name, dtype, impl):
    assert_accurate(CASES[name].to(dtype), truth(name), impl)


@both_dtypes
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name, dtype, impl):
    """Of log Z in a random direction, and of the entropy: no NaN, and in float64 those of the reference."""
    chain = CASES[name].to(dtype)
    direction = random_chain_like(chain)

    def products(impl: str) -> dict[str, Tensor]:
        leaves = chain.requires_grad().logits
        arguments = {"lengths": chain.lengths, "impl": impl}
        log_z = ops.log_partition(*leaves, **arguments)
        gradient = torch.autograd.grad(log_z.sum(), leaves, create_graph=True)
        slope = sum((v * g).sum() for v, g in zip(direction, gradient, strict=True))
        entropy = ops.entropy(*leaves, **arguments)
        found = {}
        for what, value in {"slope of log Z": slope, "entropy": entropy.sum()}.items():
            grads = torch.autograd.grad(value, leaves, retain_graph=True)
            found.update({f"{what}, by {field}": g for field, g in zip(Chain._fields, grads, strict=False)})
        return found

    ours, reference = products(impl), products("reference")
    for what, values in ours.items():
        assert values.isfinite().all(), f"{what} has an entry {values[~values.isfinite()][0]}"
        if dtype == torch.float64:
            # The entropy's are covariances with a path's total potential, and are as exact as that.
            size = (
                1 + chain.observation_logits.shape[-2] * sum(largest(logits) for logits in chain.logits)
                if "entropy" in what
                else 1.0
            )
            assert_close_to_oracle(values / size, reference[what] / size)


def largest(logits: Tensor) -> float:
    """The size of the largest potential, of those that are one."""
    return max((x for x in logits[logits.isfinite()].abs().tolist()), default=0.0)


def random_chain_like(chain: Chain) -> list[Tensor]:
    return [draw(*logits.shape, low=-1.0, seed=i).to(logits.dtype) for i, logits in enumerate(chain.logits)]


def test_gradient_reaches_the_parameters_of_masked_transitions(impl):
    """As a left-to-right model is trained: the mask is inside, and what is masked gets zero, not NaN."""
    chain = random_chain(4, 12, (2,), seed=3)
    allowed = torch.ones(4, 4).triu().bool()
    parameters = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    transition = parameters.masked_fill(~allowed, NEVER).log_softmax(-1)
    log_z = ops.log_partition(chain.initial_logits, transition, chain.observation_logits, impl=impl)
    (gradient,) = torch.autograd.grad(log_z.sum(), parameters)
    assert gradient.isfinite().all()
    assert (gradient[~allowed] == 0).all()
    pairs = exact(chain._replace(transition_logits=transition.detach())).transition_marginals.sum((0, 1))
    assert_close_to_oracle(gradient, pairs - transition.detach().exp() * pairs.sum(-1, keepdim=True))


# Long sequences. The reference walks them in Python, a millisecond a step for all results: only compiled
# implementations take the longest.

LONG = 100_000


def of_blocks_that_take_turns(num_steps: int) -> Chain:
    """Two pairs of states that never mix. Evidence puts one 200 nats down in 10^5 steps and brings it back."""
    pair = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    observation = draw(num_steps, 4, low=-0.5, seed=1)
    observation[:, 2:] += torch.where(torch.arange(num_steps) < num_steps // 2, -0.002, 0.002).unsqueeze(-1)
    return Chain(torch.zeros(4, dtype=torch.float64), torch.block_diag(pair, pair).log(), observation)


def long_chains(num_steps: int) -> dict[str, Chain]:
    lengths = torch.tensor([num_steps, 0, 1, num_steps // 2 + 1])
    plain = random_chain(3, num_steps, seed=1)
    impossible = random_chain(2, num_steps, (2,), seed=2)
    impossible.observation_logits[0, num_steps // 2] = NEVER
    cases = {
        "ragged": random_chain(2, num_steps, (4,), lengths=lengths, scale=3.0, poison=True),
        "left_to_right": Chain(*left_to_right(4), draw(num_steps, 4, low=-0.1, seed=3)),
        "from_1_to_1e-300": plain._replace(transition_logits=torch.linspace(TINY, 0, 9).reshape(3, 3)),
        "evidence_of_1e4": plain._replace(observation_logits=draw(num_steps, 3, low=-1e4, seed=4)),
        "blocks_that_take_turns": of_blocks_that_take_turns(num_steps),
        "an_impossible_step": impossible,
        "each": random_chain(2, num_steps, (), transitions="each", seed=5),
    }
    return {name: chain.to(torch.float32) for name, chain in cases.items()}


LONG_NAMES = list(long_chains(2))
# The roundings that a float32 result may add up, in eps of its size: those of a few steps where the chain forgets, of
# all steps where states never mix, and of the potentials themselves where they are large. Where a message that never
# mixes lies 200 nats down, each step rounds it by more: the reference errs by 0.0162 there, and twice that is allowed.
ROUNDINGS = {"left_to_right": LONG, "blocks_that_take_turns": 2.7 * LONG, "evidence_of_1e4": 1e4}


@pytest.fixture
def compiled(quick_impl) -> str:
    if quick_impl == "reference":
        pytest.skip("too slow")
    return quick_impl


@cache
def long_truth(name: str, num_steps: int) -> tuple[Chain, Exact]:
    chain = long_chains(num_steps)[name]
    return chain, in_log_space(chain)


@both_dtypes
@pytest.mark.parametrize("name", LONG_NAMES)
def test_long_sequences(name, dtype, compiled):
    chain, expected = long_truth(name, LONG)
    assert_accurate(chain.to(dtype), expected, compiled, rounding=ROUNDINGS.get(name, 8.0), budget=None)


@both_dtypes
@pytest.mark.parametrize("num_steps", [150, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LONG_NAMES)
def test_errors_grow_no_faster_with_time_than_the_references(name, num_steps, dtype, impl, request):
    if name not in ("blocks_that_take_turns", "each"):
        impl = request.getfixturevalue("quick_impl")
    chain, expected = long_truth(name, num_steps)
    assert_accurate(chain.to(dtype), expected, impl)


# A million steps have closed forms where the next state does not depend on this one, and where there is one path.

MILLION = 1_000_000


def memoryless(num_states: int, num_steps: int) -> tuple[Chain, Exact]:
    row = draw(num_states, low=-5.0, seed=1).float()
    chain = Chain(row, row.expand(num_states, num_states), draw(num_steps, num_states, low=-30.0, seed=2).float())
    joint = row.double() + chain.observation_logits.double()
    log_evidence, log_probs = joint.logsumexp(-1), joint.log_softmax(-1)
    marginals = log_probs.exp()
    pairs = marginals[:-1, :, None] * marginals[1:, None, :]
    best, entropy = joint.amax(-1).sum(), -(marginals * log_probs).sum()
    return chain, Exact(log_evidence.sum(), log_probs, log_evidence, marginals, pairs, best, entropy)


def deterministic(num_states: int, num_steps: int) -> tuple[Chain, Exact]:
    chain = one_path(num_states, num_steps).to(torch.float32)
    chain = chain._replace(initial_logits=chain.initial_logits[0], observation_logits=chain.observation_logits[0])
    state = torch.arange(num_steps) % num_states
    certain = torch.nn.functional.one_hot(state, num_states).double()
    log_evidence = chain.observation_logits.double().gather(-1, state.unsqueeze(-1)).squeeze(-1)
    pairs = certain[:-1, :, None] * certain[1:, None, :]
    log_z, nothing = log_evidence.sum(), torch.zeros((), dtype=torch.float64)
    return chain, Exact(log_z, certain.log(), log_evidence, certain, pairs, log_z, nothing)


@both_dtypes
@pytest.mark.parametrize(("form", "num_states"), [(memoryless, 1), (memoryless, 3), (deterministic, 3)])
def test_closed_forms(form, num_states, dtype, quick_impl):
    chain, expected = form(num_states, 200)
    assert_accurate(chain.to(dtype), expected, quick_impl)


@both_dtypes
@pytest.mark.parametrize(("form", "num_states"), [(memoryless, 1), (memoryless, 3), (deterministic, 3)])
def test_closed_forms_of_a_million_steps(form, num_states, dtype, compiled):
    chain, expected = form(num_states, MILLION)
    # Evidence of 30 nats is rounded to 30 eps.
    assert_accurate(chain.to(dtype), expected, compiled, rounding=30.0, budget=None)


# The oracles themselves.


@pytest.mark.parametrize("name", [name for name, chain in CASES.items() if chain.initial_logits.shape[-1] <= 8])
def test_the_oracle_of_long_sequences_agrees_with_that_of_many_digits(name):
    for field, ours, true in zip(Exact._fields, in_log_space(CASES[name]), truth(name), strict=True):
        if field == "log_evidence":
            ours, true = (x.masked_fill((true == NEVER).cumsum(-1) > 1, 0) for x in (ours, true))
        assert_close_to_oracle(ours, true)
