"""One model of each kind, with data that are ragged, partly missing and a subset of a larger set."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.models import HMM, NeuralHMM

K, D, C, V = 3, 2, 2, 4
N, T = 4, 4


def net(num_in: int, num_out: int, hidden: int = 6) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(num_in, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, num_out))


def bits(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (N, T, D), generator=generator).double()


def symbols(generator: torch.Generator) -> Tensor:
    return torch.randint(0, V, (N, T), generator=generator)


def numbers(generator: torch.Generator) -> Tensor:
    return torch.randn(N, T, D, generator=generator, dtype=torch.float64)


def counts(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 4, (N, T, D), generator=generator).double()


def left_to_right() -> Tensor:
    return torch.ones(K, K, dtype=torch.bool).triu()


def regression() -> HMM:
    initial, transition = nn.RegressionInitial(K, C), nn.RegressionTransition(K, C, prior=dist.Normal(0.0, 1.0))
    for part in (initial, transition):
        torch.nn.init.normal_(part.weights)
    return HMM(nn.BernoulliEmission(K, D), initial, transition)


def stationary(transition: nn.Part) -> HMM:
    return HMM(nn.BernoulliEmission(K, D), nn.StationaryInitial(transition), transition)


CASES: dict[str, tuple[Callable[[], HMM], Callable[[torch.Generator], Tensor]]] = {
    "categorical": (lambda: HMM(nn.CategoricalEmission(K, V)), symbols),
    "gaussian": (lambda: HMM(nn.GaussianEmission(K, D, "full")), numbers),
    "poisson": (lambda: HMM(nn.PoissonEmission(K, D)), counts),
    "left to right": (
        lambda: HMM(nn.BernoulliEmission(K, D), transition=nn.Transition(K, left_to_right())),
        bits,
    ),
    "labels": (lambda: HMM(nn.BernoulliEmission(K, D), use_labels=True), bits),
    "embedded": (
        lambda: NeuralHMM(
            initial=nn.Initial(K),
            transition=nn.NeuralTransition(K, hidden=4, embedding=3),
            emission=nn.NeuralEmission(K, net(K, D), "bernoulli"),
        ),
        bits,
    ),
    "regression": (regression, bits),
    "periodic": (lambda: HMM(nn.BernoulliEmission(K, D), transition=nn.PeriodicTransition(K, 3, column=1)), bits),
    "stationary": (lambda: stationary(nn.Transition(K, nn.banded(K, 1))), bits),
    "stationary by inputs": (lambda: stationary(nn.NeuralTransition(K, context=C, hidden=4)), bits),
    "inputs": (
        lambda: NeuralHMM(
            initial=nn.Initial(K, context=C, hidden=4),
            transition=nn.NeuralTransition(K, context=C, hidden=4),
            emission=nn.NeuralEmission(K, net(K + C, 2 * D), "gaussian", context=C),
        ),
        numbers,
    ),
    "autoregressive": (
        lambda: NeuralHMM(
            initial=nn.Initial(K),
            transition=nn.Transition(K),
            emission=nn.AutoregressiveEmission(K, net(K + C + 2 * D, D), "bernoulli", dim=D, order=2, context=C),
        ),
        bits,
    ),
    "autoregressive symbols": (
        lambda: NeuralHMM(
            initial=nn.Initial(K),
            transition=nn.Transition(K),
            emission=nn.AutoregressiveEmission(K, net(K + 2 * V, V), "categorical", dim=V, order=2),
        ),
        symbols,
    ),
    "mixture": (lambda: HMM(nn.GaussianMixtureEmission(K, D, 2, "full")), numbers),
    "composite": (
        lambda: HMM(
            nn.CompositeEmission(
                [
                    nn.AutoregressiveEmission(K, net(K + C + 1, 2), "gaussian", dim=1, context=C),
                    nn.CategoricalEmission(K, 2),
                ]
            )
        ),
        bits,
    ),
    "composite with a closed form": (
        lambda: HMM(
            nn.CompositeEmission(
                [nn.LinearAutoregressiveEmission(K, 1, 2, "diag", context=C, weight=0.1), nn.CategoricalEmission(K, 2)]
            )
        ),
        bits,
    ),
    "tied": (lambda: HMM(nn.TiedEmission(nn.PoissonEmission(2, D), [0, 1, 0])), counts),
    "tied rows": (lambda: HMM(nn.PoissonEmission(K, D), transition=nn.TiedTransition(K, [0, 1, 0])), counts),
    "factor analysis": (lambda: HMM(nn.FactorAnalysisEmission(K, D, 1)), numbers),
    "linear": (lambda: HMM(nn.LinearRegressionEmission(K, D, C)), numbers),
    "linear autoregressive": (
        lambda: HMM(nn.LinearAutoregressiveEmission(K, D, 2, context=C, weight=0.1)),
        numbers,
    ),
    "logistic": (lambda: HMM(nn.LogisticRegressionEmission(K, D, C)), bits),
    "poisson regression": (lambda: HMM(nn.PoissonRegressionEmission(K, D, C)), counts),
}


def make(name: str, seed: int = 0) -> tuple[HMM, Sequences]:
    """A model in float64 and its data: lengths 4, 3, 1, 2, some steps missing, 4 sequences out of 10."""
    build, draw = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((N, T), -1)
    labels[0, 2] = labels[1, 0] = labels[3, 1] = 1
    x = draw(generator)
    inputs = torch.randn(N, T, C, generator=generator, dtype=torch.float64)
    # Whole numbers, which can be phases of a period.
    inputs[..., -1].round_()
    data = Sequences(
        x,
        torch.tensor([4, 3, 1, 2]),
        inputs=inputs,
        labels=labels,
        mask=torch.rand(N, T, generator=generator) < 0.8,
        index=torch.tensor([7, 2, 9, 0]),
        num_total=10,
    )
    return model, data
