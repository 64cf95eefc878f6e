"""Every emission with a closed M-step: how it is made, with a prior and without, and data that it can emit."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from pyrohmm import nn

K, D, V = 2, 3, 5


class Case(NamedTuple):
    """An emission.

    Attributes:
        make: a part, from a generator and its prior (None for none).
        draw: observations (M, *event) in float64 or int64.
        prior: one that fits, or None if it takes none.
        steps: repeated M-steps with fixed weights that reach the maximum: 1 for families without hidden parts.
        entries: whether single entries can be missing.
    """

    make: Callable[..., nn.Part]
    draw: Callable[[int, Generator], Tensor]
    prior: object = None
    steps: int = 1
    entries: bool = True


def reals(num: int, generator: Generator) -> Tensor:
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-0.3, 0.2, 2.0]]).double()
    return torch.randn(num, D, generator=generator, dtype=torch.float64) @ mixing.mT + torch.tensor([1.0, 0.0, -20.0])


def bits(num: int, generator: Generator) -> Tensor:
    return torch.randint(2, (num, D), generator=generator).double()


def counts(num: int, generator: Generator) -> Tensor:
    return torch.poisson(torch.tensor([0.5, 3.0, 20.0]).expand(num, D), generator).double()


def symbols(num: int, generator: Generator) -> Tensor:
    return torch.randint(V, (num,), generator=generator)


def dispersed(num: int, generator: Generator) -> Tensor:
    """Counts that vary more than a Poisson distribution says, and have more zeros."""
    rate = torch.tensor([0.5, 3.0, 20.0]) * torch.rand(num, D, generator=generator).log().neg()
    return torch.poisson(rate, generator).double() * (torch.rand(num, D, generator=generator) < 0.8)


def positive(num: int, generator: Generator) -> Tensor:
    return reals(num, generator).mul(0.5).exp()


def proportions(num: int, generator: Generator) -> Tensor:
    return (reals(num, generator) * torch.tensor([0.3, 1.0, 0.1])).sigmoid()


def angles(num: int, generator: Generator) -> Tensor:
    return reals(num, generator) * torch.tensor([0.1, 0.7, 3.0])


def outliers(num: int, generator: Generator) -> Tensor:
    """Student's t with one degree of freedom."""
    above, below = torch.randn(2, num, D, generator=generator, dtype=torch.float64)
    return above / below + torch.tensor([0, 5, -20])


def symbol_counts(num: int, generator: Generator) -> Tensor:
    return torch.poisson(torch.tensor([0.5, 3.0, 0.1, 1.0, 2.0]).expand(num, V), generator).double()


def clusters(num: int, generator: Generator) -> Tensor:
    """Of two kinds, well apart."""
    return reals(num, generator) + 12.0 * torch.randint(2, (num, 1), generator=generator)


def streams(num: int, generator: Generator) -> Tensor:
    """Two numbers, a symbol and a bit."""
    columns = reals(num, generator)[:, :2], symbols(num, generator).unsqueeze(-1), bits(num, generator)[:, :1]
    return torch.cat([column.double() for column in columns], -1)


def one_factor(num: int, generator: Generator) -> Tensor:
    """Reals that one common factor explains, but for noise."""
    factor = torch.randn(num, 1, generator=generator, dtype=torch.float64)
    return torch.tensor([1.0, -1.5, 3.0]) * factor + torch.randn(num, D, generator=generator, dtype=torch.float64)


class Packed(nn.Part):
    """An emission on inputs and earlier observations that finds them in x, beside the D entries of an observation.

    So the tests of emissions that read neither hold for it too.
    """

    def __init__(self, part: nn.Part, context: int = 0):
        super().__init__()
        self.part, self.context, self.num_states = part, context, part.num_states

    def _unpack(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[..., :D], x[..., D : D + self.context], x[..., D + self.context :]

    def forward(self, state: Tensor, observed: Tensor | None = None) -> SimpleNamespace:
        def log_prob(x: Tensor) -> Tensor:
            x, inputs, previous = self._unpack(x)
            seen = None if observed is None else observed[..., :D]
            return self.part(state, inputs, previous, seen).log_prob(x)

        return SimpleNamespace(log_prob=log_prob)

    def log_prior(self) -> Tensor:
        return self.part.log_prior()

    def expected_statistics(self, x: Tensor, weights: Tensor, observed: Tensor | None = None) -> dict[str, Tensor]:
        x, inputs, previous = self._unpack(x)
        seen = None if observed is None else observed[..., :D]
        return self.part.expected_statistics(x, weights, inputs, previous, seen)

    def maximize(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.part.maximize(statistics)


C = 2


def on_inputs(draw: Callable[[int, Generator], Tensor], width: int = C) -> Callable[[int, Generator], Tensor]:
    """Observations with inputs of different size beside them."""

    def packed(num: int, generator: Generator) -> Tensor:
        inputs = torch.randn(num, width, generator=generator, dtype=torch.float64)
        return torch.cat([draw(num, generator), inputs * torch.linspace(1.0, 0.3, width)], -1)

    return packed


def more(prior: object, **priors: object) -> dict[str, object]:
    """Further priors, if there is one."""
    return {} if prior is None else priors


NORMAL = dist.Normal(0.2, 0.5)
INVERSE = dist.InverseGamma(torch.tensor([[1.5], [2.0]]), 0.7)
INVERSE_WISHART = nn.InverseWishart(6.0, torch.eye(D) + 0.2)
WISHART = nn.NormalInverseWishart(0.5, 2.0, 6.0, torch.eye(D) + 0.2)
GAMMA = nn.NormalInverseGamma(0.5, 2.0, torch.tensor([[1.5], [2.0]]), 0.7)

CASES: dict[str, Case] = {
    "categorical": Case(
        lambda prior, generator: nn.CategoricalEmission(K, V, prior=prior, generator=generator),
        symbols,
        dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 1.5, 1.0])),
    ),
    "bernoulli": Case(
        lambda prior, generator: nn.BernoulliEmission(K, D, prior=prior, generator=generator), bits, dist.Beta(2.0, 3.0)
    ),
    "poisson": Case(
        lambda prior, generator: nn.PoissonEmission(K, D, prior=prior, generator=generator),
        counts,
        dist.Gamma(2.0, 0.5),
    ),
    **{
        f"gaussian {covariance}": Case(
            lambda prior, generator, covariance=covariance: nn.GaussianEmission(
                K, D, covariance, prior=prior, generator=generator
            ),
            reals,
            GAMMA if covariance in ("diag", "spherical") else WISHART,
        )
        for covariance in ("diag", "spherical", "full", "tied")
    },
    "negative binomial": Case(
        lambda prior, generator: nn.NegativeBinomialEmission(
            K, D, prior=prior, generator=generator, **more(prior, mean_prior=dist.Gamma(3.0, 2.0))
        ),
        dispersed,
        dist.Gamma(2.0, 0.5),
        steps=12,
    ),
    "zero-inflated poisson": Case(
        lambda prior, generator: nn.ZeroInflatedPoissonEmission(
            K, D, prior=prior, generator=generator, **more(prior, gate_prior=dist.Beta(2.0, 3.0))
        ),
        dispersed,
        dist.Gamma(2.0, 0.5),
        steps=20,
    ),
    "zero-inflated negative binomial": Case(
        lambda prior, generator: nn.ZeroInflatedNegativeBinomialEmission(
            K,
            D,
            prior=prior,
            generator=generator,
            **more(prior, gate_prior=dist.Beta(2.0, 3.0), mean_prior=dist.Gamma(3.0, 2.0)),
        ),
        dispersed,
        dist.Gamma(2.0, 0.5),
        steps=200,
    ),
    "exponential": Case(
        lambda prior, generator: nn.ExponentialEmission(K, D, prior=prior, generator=generator),
        positive,
        dist.Gamma(2.0, 0.5),
    ),
    "gamma": Case(
        lambda prior, generator: nn.GammaEmission(
            K, D, prior=prior, generator=generator, **more(prior, mean_prior=INVERSE)
        ),
        positive,
        dist.Gamma(2.0, 0.5),
    ),
    "log-normal": Case(
        lambda prior, generator: nn.LogNormalEmission(K, D, prior=prior, generator=generator), positive, GAMMA
    ),
    "beta": Case(
        lambda prior, generator: nn.BetaEmission(
            K, D, prior=prior, generator=generator, **more(prior, mean_prior=dist.Beta(2.0, 5.0))
        ),
        proportions,
        dist.Gamma(2.0, 0.5),
    ),
    "von mises": Case(
        lambda prior, generator: nn.VonMisesEmission(
            K, D, prior=prior, generator=generator, **more(prior, loc_prior=dist.VonMises(0.5, 4.0))
        ),
        angles,
        dist.Gamma(2.0, 0.5),
    ),
    "student": Case(
        lambda prior, generator: nn.StudentTEmission(
            K, D, prior=prior, generator=generator, **more(prior, loc_prior=GAMMA)
        ),
        outliers,
        dist.Gamma(2.0, 0.1),
        steps=200,
    ),
    "multinomial": Case(
        lambda prior, generator: nn.MultinomialEmission(K, V, prior=prior, generator=generator),
        symbol_counts,
        dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 1.5, 1.0])),
    ),
    **{
        f"mixture {covariance}": Case(
            lambda prior, generator, covariance=covariance: nn.GaussianMixtureEmission(
                K,
                D,
                2,
                covariance,
                loc=torch.tensor([1.0, 0.0, -20.0]) + 12 * torch.tensor([[0.0], [1.0]]),
                prior=prior,
                mixture_prior=None if prior is None else dist.Dirichlet(torch.tensor([2.0, 3.0])),
                generator=generator,
            ),
            clusters,
            nn.NormalInverseGamma(0.5, 0.2, 1.5, 0.7) if covariance in ("diag", "spherical") else WISHART,
            steps=30,
        )
        for covariance in ("diag", "spherical", "full", "tied")
    },
    "composite": Case(
        lambda prior, generator: nn.CompositeEmission(
            [
                nn.GaussianEmission(K, 2, "full", prior=None, generator=generator),
                nn.CategoricalEmission(K, V, prior=prior, generator=generator),
                nn.BernoulliEmission(K, 1, generator=generator),
            ]
        ),
        streams,
        dist.Dirichlet(torch.full((V,), 2.0)),
    ),
    **{
        f"linear {covariance}": Case(
            lambda prior, generator, covariance=covariance: Packed(
                nn.LinearRegressionEmission(
                    K,
                    D,
                    C,
                    covariance,
                    prior=prior,
                    generator=generator,
                    **more(
                        prior,
                        bias_prior=dist.Normal(torch.tensor([0.0, 1.0, -18.0]), 0.5),
                        noise_prior=INVERSE if covariance in ("diag", "spherical") else INVERSE_WISHART,
                    ),
                ),
                C,
            ),
            on_inputs(reals),
            NORMAL,
            steps=30,
            entries=False,
        )
        for covariance in ("diag", "spherical", "full", "tied")
    },
    "linear autoregressive": Case(
        lambda prior, generator: Packed(
            nn.LinearAutoregressiveEmission(K, D, 2, context=1, prior=prior, generator=generator), 1
        ),
        on_inputs(reals, 1 + 2 * D),
        dist.Normal(0.0, torch.linspace(0.1, 1.0, 1 + 2 * D)),
        steps=50,
        entries=False,
    ),
    "factor analysis": Case(
        lambda prior, generator: nn.FactorAnalysisEmission(
            K,
            D,
            1,
            generator=generator,
            factors_prior=prior,
            **more(prior, loc_prior=dist.Normal(0.5, 0.3), noise_prior=INVERSE),
        ),
        one_factor,
        NORMAL,
        steps=60,
    ),
    "tied": Case(
        lambda prior, generator: nn.TiedEmission(
            nn.GaussianEmission(K, D, prior=prior, generator=generator), torch.arange(K)
        ),
        reals,
        GAMMA,
    ),
    "logistic": Case(
        lambda prior, generator: Packed(
            nn.LogisticRegressionEmission(K, D, C, prior=prior, generator=generator, **more(prior, bias_prior=NORMAL)),
            C,
        ),
        on_inputs(bits),
        NORMAL,
        steps=60,
        entries=False,
    ),
    "poisson regression": Case(
        lambda prior, generator: Packed(
            nn.PoissonRegressionEmission(K, D, C, prior=prior, generator=generator, **more(prior, bias_prior=NORMAL)),
            C,
        ),
        on_inputs(counts),
        NORMAL,
        steps=30,
        entries=False,
    ),
}


def make(name: str, *, prior: bool = False, seed: int = 0) -> nn.Part:
    """The emission of a case in float64, its parameters away from any symmetric value."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    part = case.make(case.prior if prior else None, generator).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return part


def draw(name: str, num: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Observations and posterior weights (num, K)."""
    generator = torch.Generator().manual_seed(seed)
    x = CASES[name].draw(num, generator)
    return x, torch.rand(num, K, generator=generator, dtype=torch.float64)


# Those that can be the emission of a model as they are.
ALONE = [name for name in CASES if not isinstance(make(name), Packed)]
