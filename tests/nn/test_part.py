"""The M-step of the parts that are tables of probabilities: the initial law and the transitions.

That of emissions is tested in `emission/test_maximize.py`.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrohmm.nn import GaussianEmission, Initial, Part, PeriodicTransition, TiedTransition, Transition, left_to_right
from pyrohmm.nn.part import add_up

K, P, N, T = 3, 4, 5, 6
MASK = left_to_right(K, skip=1)
FIRST = torch.tensor([True, True, False])


class Case(NamedTuple):
    """A part, from a prior; its priors; and the dims of the weights of one E-step before the states'."""

    make: Callable[..., Part]
    prior: Callable[[], Tensor]
    own: tuple[int, ...]
    steps: tuple[int, ...] = ()


CASES = {
    "initial": Case(lambda **options: Initial(K, **options), lambda: torch.rand(K), (K,)),
    "initial, mask": Case(lambda **options: Initial(K, mask=FIRST, **options), lambda: torch.rand(K), (K,)),
    "table": Case(lambda **options: Transition(K, **options), lambda: torch.rand(K, K), (K, K)),
    "table, mask": Case(lambda **options: Transition(K, MASK, **options), lambda: torch.eye(K), (K, K)),
    "tied": Case(lambda **options: TiedTransition(K, [0, 1, 0], **options), lambda: torch.rand(2, K), (K, K)),
    "periodic": Case(
        lambda **options: PeriodicTransition(K, P, **options), lambda: torch.rand(P, K, K), (K, K), (N, T)
    ),
    "periodic, mask": Case(
        lambda **options: PeriodicTransition(K, P, mask=MASK, **options), lambda: torch.rand(K), (K, K), (N, T)
    ),
}
every_case = pytest.mark.parametrize("name", CASES)
INPUTS = (torch.arange(N * T).reshape(N, T, 1) * 3 // 2) % P


def make(name: str, *, prior: bool = False, seed: int = 0) -> Part:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        part = CASES[name].make(prior=dist.Dirichlet(1 + CASES[name].prior()) if prior else None).double()
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter)
    return part


def draw(name: str, part: Part, seed: int = 1) -> Tensor:
    """Weights as an E-step has them: nothing where it is forbidden."""
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    weights = torch.rand(*case.steps, *case.own, generator=generator, dtype=torch.float64)
    return weights if part.mask is None else weights * part.mask


def log_probs(part: Part) -> Tensor:
    return part.log_probs(INPUTS)


def objective(part: Part, weights: Tensor) -> Tensor:
    """The expected log-probability plus the log prior."""
    return torch.where(weights > 0, log_probs(part), 0.0).mul(weights).sum() + part.log_prior()


def maximise(part: Part, weights: Tensor) -> dict[str, Tensor]:
    return part.maximize(part.expected_statistics(weights, INPUTS))


@every_case
@pytest.mark.parametrize("prior", [False, True])
def test_is_the_maximum(name, prior):
    part = make(name, prior=prior)
    weights = draw(name, part)
    assert part.closed_form and part.has_prior == prior
    before = objective(part, weights)
    mask = part.mask
    maximise(part, weights)
    value = objective(part, weights)
    assert value > before
    (slope,) = torch.autograd.grad(value, [part.logits])
    assert slope.abs().max() < 1e-12
    torch.testing.assert_close(log_probs(part).exp().sum(-1), log_probs(part).new_ones(log_probs(part).shape[:-1]))
    if mask is not None:
        assert (log_probs(part)[..., ~mask] == -torch.inf).all() and part.logits.isfinite().all()


@every_case
def test_log_prior_is_that_of_the_probabilities(name):
    """Up to a constant: differences are those of the Dirichlet density, over what is allowed."""
    parts = [make(name, prior=True), make(name, prior=True)]
    torch.nn.init.normal_(parts[1].logits, generator=torch.Generator().manual_seed(9))
    values = []
    for part in parts:
        masked = part.logits if part.mask is None else part.logits.masked_fill(~part.mask, -torch.inf)
        log_p = masked.log_softmax(-1)
        values.append(torch.where(log_p == -torch.inf, 0.0, (part.prior - 1) * log_p).sum())
        torch.testing.assert_close(part.log_prior(), values[-1])
        assert part.log_prior().shape == ()
        assert torch.autograd.grad(part.log_prior(), [part.logits])[0].isfinite().all()
    assert values[0] != values[1]
    if name == "initial":
        densities = [dist.Dirichlet(parts[0].prior).log_prob(log_probs(part).exp()) for part in parts]
        torch.testing.assert_close(values[0] - values[1], densities[0] - densities[1])


@every_case
def test_statistics_add_up(name):
    part = make(name)
    weights = [draw(name, part, seed) for seed in range(3)]
    total = {}
    for some in weights:
        add_up(total, part.expected_statistics(some.float(), INPUTS))
    assert all(value.dtype == torch.float64 for value in total.values())
    torch.testing.assert_close(total, part.expected_statistics(sum(weights), INPUTS), rtol=1e-6, atol=1e-6)


@every_case
@pytest.mark.parametrize("prior", [False, True])
def test_side_by_side_is_one_by_one(name, prior):
    """Tables with (R, 1, 1) in front are R models."""
    parts = [make(name, prior=prior, seed=seed) for seed in range(2)]
    if prior:
        parts[1].prior.copy_(parts[0].prior)
    weights = torch.stack([draw(name, part, seed) for seed, part in enumerate(parts)])
    both = copy.deepcopy(parts[0])
    both.logits = torch.nn.Parameter(torch.stack([part.logits.detach() for part in parts])[:, None, None])
    for r, part in enumerate(parts):
        torch.testing.assert_close(log_probs(both)[r].squeeze(), log_probs(part))
        torch.testing.assert_close(both.log_prior().expand(2)[r], part.log_prior())
    events = maximise(both, weights)
    assert all(flags.shape == (2, K) for flags in events.values())
    for r, part in enumerate(parts):
        maximise(part, weights[r])
        torch.testing.assert_close(both.logits[r, 0, 0], part.logits)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("initial")])
@pytest.mark.parametrize("prior", [False, True])
def test_states_never_left_stay_and_are_told(name, prior):
    part = make(name, prior=prior)
    weights = draw(name, part)
    weights[..., 1, :] = 0
    before = log_probs(part)
    ((text, flags),) = maximise(part, weights).items()
    assert "never left" in text
    stays = torch.tensor([False, True, False])
    if prior:
        # The prior's mode, if the prior says anything of the row.
        assert not flags.any()
    else:
        assert torch.equal(flags, stays)
        torch.testing.assert_close(log_probs(part)[..., 1, :], before[..., 1, :])
    assert not torch.allclose(log_probs(part)[..., 0, :], before[..., 0, :])


def test_no_sequences_leave_the_first_state_as_it_is():
    part = make("initial")
    before = part.logits.clone()
    part.maximize({"counts": torch.zeros(K, dtype=torch.float64)})
    assert torch.equal(part.logits, before)


@every_case
def test_frozen_tables_stay(name):
    part = make(name)
    part.logits.requires_grad_(False)
    before = part.logits.clone()
    maximise(part, draw(name, part))
    assert torch.equal(part.logits, before) and not part.logits.requires_grad


@every_case
def test_least_probability(name):
    """What was never seen keeps a probability of about exp(-30)."""
    part = make(name)
    weights = draw(name, part)
    weights[..., 1] = 0  # of the first state, or the way to the second one
    maximise(part, weights)
    unseen = log_probs(part)[..., 1] if name.startswith("initial") else log_probs(part)[..., 0, 1]
    torch.testing.assert_close(unseen, torch.full_like(unseen, -30.0))
    assert log_probs(part).isfinite().equal(log_probs(make(name)).isfinite())
    weights = draw(name, part)
    maximise(part, weights)
    assert log_probs(part)[weights > 0].min() > -10


@every_case
def test_priors_that_do_not_fit(name):
    sparse = dist.Dirichlet(torch.tensor([2.0, 0.5, 1.0]))
    if name in ("initial", "initial, mask", "table", "table, mask", "tied"):
        assert not CASES[name].make(prior=sparse).prior_has_mode and make(name).prior_has_mode
    else:
        with pytest.raises(ValueError, match="prior: expected concentrations of at least 1, got 0.5"):
            CASES[name].make(prior=sparse)
    with pytest.raises(TypeError, match="prior: expected a Dirichlet, got Gamma"):
        CASES[name].make(prior=dist.Gamma(torch.ones(K), 1.0))
    with pytest.raises(ValueError, match="prior: expected parameters that broadcast to"):
        CASES[name].make(prior=dist.Dirichlet(torch.ones(K + 1)))


def test_the_prior_of_a_network_is_normal():
    with pytest.raises(TypeError, match="prior: expected a Normal, got Dirichlet"):
        Initial(K, context=2, prior=dist.Dirichlet(torch.ones(K)))
    assert not Initial(K, context=2).closed_form


def test_values_in_place_of_parameters():
    part = GaussianEmission(2, 3, "full")
    own = dict(part.named_parameters())
    values = {"loc": torch.ones(2, 3, requires_grad=True), "covariance": torch.eye(3).expand(2, 3, 3) * 4}
    with part.given(values):
        law = part(torch.tensor([0, 1]))
        torch.testing.assert_close(law.covariance_matrix, values["covariance"])
        (grad,) = torch.autograd.grad(law.log_prob(torch.zeros(3)).sum(), values["loc"])
        torch.testing.assert_close(grad, torch.full((2, 3), -0.25))
    with pytest.raises(TypeError, match="state: expected int64"), part.given(values):
        part(torch.zeros(2))
    assert all(getattr(part, name) is parameter for name, parameter in own.items())
