"""The M-step for every kind of initial law and transition: which parts are maximised how, and what fits then do."""

from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrohmm import fit_em, fit_svi, nn, ops
from pyrohmm.data import Sequences
from pyrohmm.infer.maximization import closed_parts
from pyrohmm.models import HMM
from pyrohmm.testing import enumeration
from tests.models.cases import make

K, C, P, N, T = 3, 2, 3, 6, 7


def emission() -> nn.Part:
    return nn.GaussianEmission(K, 1, loc=torch.tensor([[-1.0], [0.0], [1.5]]))


def stationary(transition: nn.Part) -> HMM:
    return HMM(emission(), nn.StationaryInitial(transition), transition)


FIRST = torch.arange(K) == 0
MODELS = {
    "left to right": lambda: HMM(emission(), nn.Initial(K, mask=FIRST), nn.Transition(K, nn.left_to_right(K, skip=1))),
    "banded": lambda: HMM(emission(), transition=nn.Transition(K, nn.banded(K, 1, cyclic=True))),
    "sticky prior": lambda: HMM(
        emission(),
        nn.Initial(K, prior=dist.Dirichlet(torch.full((K,), 1.5))),
        nn.Transition(K, prior=dist.Dirichlet(1 + 4 * torch.eye(K))),
    ),
    "regression": lambda: HMM(emission(), nn.RegressionInitial(K, C), nn.RegressionTransition(K, C)),
    "shared regression": lambda: HMM(
        emission(),
        nn.RegressionInitial(K, C, prior=dist.Normal(0.0, 1.0)),
        nn.RegressionTransition(K, C, shared=True, mask=nn.banded(K, 1), prior=dist.Normal(0.0, 1.0)),
    ),
    "neural": lambda: HMM(emission(), nn.Initial(K, C, 4), nn.NeuralTransition(K, C, 4)),
    "periodic": lambda: HMM(emission(), transition=nn.PeriodicTransition(K, P, column=1)),
    "masked periodic": lambda: HMM(
        emission(),
        transition=nn.PeriodicTransition(
            K, P, column=1, mask=nn.banded(K, 1), prior=dist.Dirichlet(torch.full((K,), 2.0))
        ),
    ),
    "stationary": lambda: stationary(nn.Transition(K)),
    "stationary, prior": lambda: stationary(nn.Transition(K, prior=dist.Dirichlet(1 + 2 * torch.eye(K)))),
    "stationary, banded": lambda: stationary(nn.Transition(K, nn.banded(K, 1))),
    "stationary, periodic": lambda: stationary(nn.PeriodicTransition(K, P, column=1)),
    "stationary, regression": lambda: stationary(nn.RegressionTransition(K, C)),
}
CLOSED = {"left to right", "banded", "sticky prior", "periodic", "masked periodic"}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, seed: int = 0) -> HMM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[name]().double()


def draw(lengths: Tensor | None = None) -> Sequences:
    """Ragged sequences with inputs, the second of which is a phase."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N, T, C, generator=generator, dtype=torch.float64)
    inputs[..., 1] = (torch.arange(T) + torch.arange(N).unsqueeze(-1)) % P
    x = torch.randn(N, T, 1, generator=generator, dtype=torch.float64) + inputs[..., :1]
    return Sequences(x, torch.tensor([7, 7, 1, 5, 2, 6]) if lengths is None else lengths, inputs=inputs)


@every_model
def test_potentials_are_those_of_the_program(name):
    """`potentials`, which EM uses, and the Pyro program, which SVI uses, are the same chain, that of all paths."""
    model, data = build(name), draw()
    potentials = model.potentials(data)
    chain = model.posterior(data)
    torch.testing.assert_close(ops.log_partition(*potentials, lengths=data.lengths), model.log_prob(data))
    smoothed = ops.smooth(*potentials, lengths=data.lengths)
    torch.testing.assert_close(chain.marginals, smoothed.state_marginals)
    for i, length in enumerate(data.lengths.tolist()):
        if length <= 5:
            one = [
                logits[i] if logits.dim() > own else logits for logits, own in zip(potentials, (1, 2, 2), strict=True)
            ]
            one = [one[0], one[1][: length - 1] if one[1].dim() == 3 else one[1], one[2][:length]]
            expected = enumeration.smooth(*one)
            torch.testing.assert_close(model.log_prob(data)[i], expected.log_partition)
            torch.testing.assert_close(chain.marginals[i, :length], expected.state_marginals)


@every_model
def test_which_parts_are_closed(name):
    closed = closed_parts(build(name))
    assert closed == (["initial", "transition", "emission"] if name in CLOSED else ["emission"])


@every_model
def test_em_never_falls(name):
    model, data = build(name), draw()
    history = fit_em(model, data, steps=25, tolerance=0.0, learning_rate=0.05, progress=False)
    assert all(new <= old + 1e-12 for old, new in pairwise(history.loss))
    assert history.loss[-1] < history.loss[0] - 0.01
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    total = model.log_prob(data).sum() + model.log_prior()
    assert -total.item() / data.num_observed <= history.loss[-1] + 1e-12


@pytest.mark.slow
@every_model
def test_em_ends_where_the_gradient_is_zero(name):
    model, data = build(name), draw()
    fit_em(model, data, steps=600, tolerance=0.0, learning_rate=0.03, gradient_steps=20, progress=False)
    model.emission.requires_grad_(False)
    (model.log_prob(data).sum() + model.log_prior()).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().max() < 0.05


@every_model
def test_svi_goes_the_same_way(name):
    model, data = build(name), draw()
    history = fit_svi(model, data, steps=30, seed=0, progress=False)
    assert history.loss[-1] < history.loss[0]


@every_model
def test_restarts(name):
    model, data = build(name), draw()
    history = fit_em(model, data, steps=5, restarts=2, initialization="random", progress=False)
    assert len(history.restarts) == 2
    total = model.log_prob(data).sum() + model.log_prior()
    assert -total.item() / data.num_observed <= min(history.restarts) + 1e-9


def test_restarts_side_by_side_of_a_periodic_model():
    """Weights of each step, of several models: as one after another."""
    data = draw()
    together = build("masked periodic")
    history = fit_em(together, data, steps=5, restarts=3, initialization="random", tolerance=0.0, progress=False)
    losses = []
    for seed in range(3):
        alone = build("masked periodic")
        losses.append(
            fit_em(alone, data, steps=5, initialization="random", seed=seed, tolerance=0.0, progress=False).loss[-1]
        )
    assert history.restarts == pytest.approx(losses)


@pytest.mark.parametrize("name", ["periodic", "stationary", "regression"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_one_sequence_of_one_or_two_steps(name, num_steps):
    """The weights of a single transition, and of none, keep their meaning."""
    data = draw()
    one = Sequences(data.x[:1, :num_steps], inputs=data.inputs[:1, :num_steps])
    for restarts in (1, 2):
        model = build(name)
        before = model.log_prob(one).item()
        fit_em(model, one, steps=3, restarts=restarts, progress=False)
        assert model.log_prob(one).item() > before


def test_counts_of_a_periodic_model_are_those_of_the_paths():
    """With labels the M-step is counting, phase by phase."""
    model, data = build("periodic"), draw()
    labels = torch.randint(K, (N, T), generator=torch.Generator().manual_seed(2)).masked_fill(~data.valid, -1)
    data = data._replace({"labels": labels})
    fit_em(model, data, steps=1, assignment="labels", progress=False)
    counts = torch.zeros(P, K, K)
    for n in range(N):
        for t in range(1, int(data.lengths[n])):
            counts[int(data.inputs[n, t, 1]), labels[n, t - 1], labels[n, t]] += 1
    left = counts.sum(-1) > 0
    expected = counts[left] / counts[left].sum(-1, keepdim=True)
    torch.testing.assert_close(model.transition.phase_log_probs().exp()[left].float(), expected)


def test_stationary_starts_are_learned_from():
    """Sequences of one step say where a chain is in the long run, and so something of its transitions."""
    generator = torch.Generator().manual_seed(0)
    rare = torch.rand(200, 1, generator=generator) < 0.2
    data = Sequences(torch.where(rare, 3.0, -3.0).unsqueeze(-1).double())
    transition = nn.Transition(2)
    model = HMM(nn.GaussianEmission(2, 1, loc=[[-3.0], [3.0]]), nn.StationaryInitial(transition), transition).double()
    fit_em(model, data, steps=200, progress=False)
    assert model.initial().exp()[1].item() == pytest.approx(rare.double().mean().item(), abs=0.01)


def test_parameters_of_the_model_are_left_alone_by_a_stationary_start():
    model, data = make("stationary")
    model.transition.requires_grad_(False)
    before = model.transition.logits.clone()
    fit_em(model, data, steps=3, progress=False)
    assert torch.equal(model.transition.logits, before) and not model.transition.logits.requires_grad
