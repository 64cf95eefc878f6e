"""Counts."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._conjugate import GammaEntries
from pyrohmm.nn._prior import beta_log_prob, beta_mode, beta_prior, gamma_log_prob, gamma_prior
from pyrohmm.nn.emission._laws import NegativeBinomial
from pyrohmm.nn.emission.concentration import ConcentrationEmission
from pyrohmm.nn.emission.rates import RateEmission
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import LEAST_WEIGHT, Events, Statistics, table

# The M-step keeps the logarithms of rates above it: a smaller one is as good as none.
LEAST_LOG_RATE = -30.0
# Of EM inside of the M-step of zero-inflated counts, where they cost little: the zeros are counted but once.
SWEEPS = 10


class _Counts(EntriesEmission):
    """Entries 0, 1, 2, ..."""

    def _log_zero(self, tables: dict[str, Tensor]) -> Tensor:
        """The log-probability of 0, with any extra ones left out."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Square roots of the counts, whose spread grows less with their mean, (M, D)."""
        return x.sqrt()


class PoissonEmission(RateEmission, _Counts):
    """D independent counts: p(x_d | z = k) = Poisson(x_d; exp(log_rate_kd)), rates in counts for each step.

    Args:
        num_states: K.
        dim: D.
        rate: the start, a number, (D,) for all states or (K, D); one if None. The mean of the data is a good one.
        noise: size of the normal noise added to the log rates at the start, unless `rate` is (K, D).
        prior: `Gamma` on each rate, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_rate: (K, D) parameter.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `rate` of another shape or not positive and finite,
            a `prior` that does not fit.

    >>> import torch
    >>> emission = PoissonEmission(2, 1, rate=[[1.0], [2.0]])
    >>> emission(torch.tensor([0, 1])).mean.detach()
    tensor([[1.],
            [2.]])
    """

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(select(self.log_rate, state).exp())

    def conjugate_prior(self) -> GammaEntries:
        """The Gamma prior of each rate; see `Part`."""
        if type(self) is not PoissonEmission:
            super().conjugate_prior()
        if self.prior is None:
            raise ValueError("prior: expected a Gamma on each rate, got None")
        return GammaEntries(*self.prior.unbind(-1))

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        total = sums["total"]
        if self.prior is not None:
            concentration, rate = self.prior.unbind(-1)
            total, weight = total + (concentration - 1), weight + rate
        return {"log_rate": (total / weight).log().clamp_min(LEAST_LOG_RATE)}

    def _log_zero(self, tables: dict[str, Tensor]) -> Tensor:
        return -tables["log_rate"].exp()


class NegativeBinomialEmission(ConcentrationEmission, _Counts):
    r"""D independent counts that vary more than a Poisson distribution says.

    With the mean m and the concentration r of the entry in the state,

    .. math::
        p(x \mid z) = \frac{\Gamma(r + x)}{\Gamma(r)\, x!} \left(\frac{r}{r + m}\right)^r
            \left(\frac{m}{r + m}\right)^x, \qquad \mathrm{var}(x) = m + m^2 / r .

    A Poisson distribution whose rate is a gamma variable of concentration r, and r = inf is that of a constant rate.

    The best mean is that of the data. The concentration is in the sum L(r) over the data of log Gamma(r + x) -
    log Gamma(r), whose derivative is a sum of S_j / (r + j), S_j the number of counts above j. From its value a and
    slope -b at the present r_0, by Jensen's inequality,

    .. math::
        L'(r) \ge \frac{a}{1 + (r - r_0)\, b / a} \;\; (r \ge r_0), \qquad
        L'(r) \le a - r_0 b + r_0^2 b / r \;\; (r \le r_0),

    and M-steps that take the bounds for L' itself never let the likelihood fall, and near its maximum are Newton's. EM
    with the rates as hidden gamma variables would take of the order of (r / m)^2 steps.

    Args:
        num_states: K.
        dim: D.
        mean: the start, a number, (D,) for all states or (K, D); one if None. The mean of the data is a good one.
        concentration: the start of r, a number or a shape that broadcasts to (K, D).
        noise: size of the normal noise added to the log means at the start, unless `mean` is (K, D).
        prior: `Gamma` on each concentration, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        mean_prior: `Gamma` on each mean, likewise.
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_mean: (K, D) parameter, of means in counts for each step.
        log_concentration: (K, D) parameter. The M-step keeps concentrations between 1e-4 and 1e6.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `mean` or `concentration` of another shape or not
            positive and finite, a `prior` that does not fit.

    Reference:
        Lange (2016), "MM optimization algorithms", for steps of such a kind; Hilbe (2011), "Negative binomial
        regression", for the law.

    >>> import torch
    >>> emission = NegativeBinomialEmission(2, 1, mean=[[1.0], [2.0]], concentration=4.0)
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.mean.detach().T, law.variance.detach().T
    (tensor([[1., 2.]]), tensor([[1.2500, 3.0000]]))
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        mean: Any = None,
        concentration: Any = 1.0,
        noise: float = 0.1,
        prior: Any = None,
        mean_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        centre = start("mean", 1.0 if mean is None else mean, shape, 0)
        self.log_mean = nn.Parameter(centre.log() + noise * jitter(mean, shape, generator))
        self._start_concentration(concentration, prior)
        self.register_buffer("prior_mean", gamma_prior(mean_prior, shape, "mean_prior"))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        log_mean, log_concentration = select(self.log_mean, state), select(self.log_concentration, state)
        return NegativeBinomial(log_concentration.exp(), logits=log_mean - log_concentration)

    def log_prior(self) -> Tensor:
        """The log-density of concentrations and means under the priors, up to a constant, () or (R,); see `Part`."""
        if self.prior_mean is None:
            return super().log_prior()
        return super().log_prior() + gamma_log_prob(table(self.log_mean, 2), self.prior_mean).sum((-2, -1))

    def _hidden(self, x: Tensor) -> dict[str, Tensor]:
        log_concentration = self._now("log_concentration").unsqueeze(-3)
        concentration = log_concentration.exp()
        above = concentration + x
        return {
            "log_before": log_concentration.expand(above.shape),
            "rise": above.digamma() - concentration.digamma(),
            "bend": torch.polygamma(1, concentration) - torch.polygamma(1, above),
        }

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        total, rise, bend = sums["total"], sums["rise"], sums["bend"]
        before = (sums["log_before"] / sums["weight"].clamp_min(LEAST_WEIGHT)).exp()
        log_mean = self._best_mean(weight, sums).log().clamp_min(LEAST_LOG_RATE)
        mean = self._unless_frozen("log_mean", log_mean).exp()
        off = weight * mean - total  # 0 at the best mean
        left = rise - before * bend

        def slope(concentration: Tensor) -> tuple[Tensor, Tensor]:
            # r times the bound of L'(r), above and below r_0.
            scale = rise + (concentration - before) * bend
            ratio = rise / scale.clamp_min(torch.finfo(scale.dtype).tiny)
            higher = concentration > before
            bound = torch.where(higher, concentration * rise * ratio, concentration * left + before.square() * bend)
            change = concentration * left * torch.where(higher, ratio.square(), 1.0)
            # Of weight r log(r / (r + m)) + total log(m / (r + m)) in log r.
            growth, share = concentration * (mean / concentration).log1p(), concentration / (concentration + mean)
            value = bound - weight * growth + off * share
            return value, change - weight * (growth - mean * share) + off * share * (1 - share)

        return {"log_mean": log_mean, "log_concentration": self._best_concentration(slope)}

    def _best_mean(self, weight: Tensor, sums: Statistics) -> Tensor:
        total = sums["total"]
        if self.prior_mean is None:
            return total / weight
        # Given the concentration r, the slope of (total + a - 1) log m - (weight r + total) log(r + m) - b m is 0 where
        # (b / r) m^2 + (weight + b - (a - 1) / r) m = total + a - 1. Of the two forms of the root, that without a
        # difference.
        shape, rate = self.prior_mean.double().unbind(-1)
        inverse = (-sums.get("log_concentration", self._now("log_concentration"))).exp()
        total, linear, square = total + shape - 1, weight + rate - (shape - 1) * inverse, rate * inverse
        root = (linear.square() + 4 * square * total).sqrt()
        return torch.where(linear > 0, 2 * total / (root + linear.abs()), (root - linear) / (2 * square))

    def _met(self, tables: dict[str, Tensor], sums: Statistics) -> Events:
        # A large concentration is nothing bad: the counts are those of a Poisson distribution.
        return {}

    def _log_zero(self, tables: dict[str, Tensor]) -> Tensor:
        concentration = tables["log_concentration"].exp()
        return -concentration * (tables["log_mean"].exp() / concentration).log1p()


class _ZeroInflated(_Counts):
    """Zeros with the probability of a gate, else counts of the class that stands behind this one."""

    prior_gate: Tensor | None

    def _start_gate(self, gate: Any, noise: float, prior: Any, generator: Generator | None) -> None:
        shape = self.num_states, self.event_shape.numel()
        probs = start("gate", 0.1 if gate is None else gate, shape, 0, 1)
        self.gate_logits = nn.Parameter(probs.logit() + noise * jitter(gate, shape, generator))
        self.register_buffer("prior_gate", beta_prior(prior, shape))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        gate_logits = select(self.gate_logits, state)
        return dist.ZeroInflatedDistribution(super()._entries(state), gate_logits=gate_logits)

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the priors, up to a constant, () or (R,); see `Part`."""
        if self.prior_gate is None:
            return super().log_prior()
        return super().log_prior() + beta_log_prob(table(self.gate_logits, 2), self.prior_gate).sum((-2, -1))

    def _told(self) -> bool:
        return super()._told() and self.prior_gate is not None

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        return {**super()._sufficient(x), "zeros": (x == 0).to(x.dtype)}

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        tables = {name: self._now(name) for name, _ in self.named_parameters()}
        for _ in range(SWEEPS):
            # gate / (gate + (1 - gate) p(0)) of the zeros are expected to come from the gate.
            extra = sums["zeros"] * (tables["gate_logits"] - self._log_zero(tables)).sigmoid()
            counted = (weight - extra).clamp_min(LEAST_WEIGHT)
            # With the tables of this sweep, given which others are the best.
            new = super()._best(counted, sums | tables) | {"gate_logits": beta_mode(extra, counted, self.prior_gate)}
            tables = {name: self._unless_frozen(name, value) for name, value in new.items()}
        return tables


class ZeroInflatedPoissonEmission(_ZeroInflated, PoissonEmission):
    r"""D independent counts with more zeros than a Poisson distribution has.

    With the rate and the gate of the entry in the state,

    .. math::
        p(x \mid z) = \mathrm{gate} \cdot [x = 0] + (1 - \mathrm{gate}) \cdot \mathrm{Poisson}(x;\, \mathrm{rate}) .

    EM, whose hidden variable is where a zero comes from, needs no more than the number of zeros and the sum of the
    counts; `maximize` takes ten of its steps.

    Args:
        num_states: K.
        dim: D.
        rate: the start, in counts for each step where the gate is open, a number, (D,) for all states or (K, D); one
            if None.
        gate: the start of the probability of an extra zero, of the same shapes; 0.1 if None.
        noise: size of the normal noise added to log rates and gate logits at the start, unless they are (K, D).
        prior: `Gamma` on each rate, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        gate_prior: `Beta` on each gate, with concentrations that broadcast to (K, D), of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_rate, gate_logits: (K, D) parameters.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `rate` or `gate` of another shape or out of range, a
            prior that does not fit.

    Reference:
        Lambert (1992), "Zero-inflated Poisson regression, with an application to defects in manufacturing".

    >>> import torch
    >>> emission = ZeroInflatedPoissonEmission(2, 1, rate=[[1.0], [2.0]], gate=0.5, noise=0.0)
    >>> emission(torch.tensor([0, 1])).mean.detach().T
    tensor([[0.5000, 1.0000]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        rate: Any = None,
        gate: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        gate_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim, rate=rate, noise=noise, prior=prior, generator=generator)
        self._start_gate(gate, noise, gate_prior, generator)


class ZeroInflatedNegativeBinomialEmission(_ZeroInflated, NegativeBinomialEmission):
    r"""D independent counts with more zeros than a negative binomial distribution has.

    With the mean m, the concentration r and the gate of the entry in the state,

    .. math::
        p(x \mid z) = \mathrm{gate} \cdot [x = 0] + (1 - \mathrm{gate}) \cdot \mathrm{NegativeBinomial}(x;\, m, r) .

    EM as in `ZeroInflatedPoissonEmission`, with the steps of `NegativeBinomialEmission`.

    Args:
        num_states: K.
        dim: D.
        mean: the start, in counts for each step where the gate is open, a number, (D,) for all states or (K, D); one
            if None.
        concentration: the start of r, a number or a shape that broadcasts to (K, D).
        gate: the start of the probability of an extra zero, a number, (D,) for all states or (K, D); 0.1 if None.
        noise: size of the normal noise added to log means and gate logits at the start, unless they are (K, D).
        prior: `Gamma` on each concentration, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        mean_prior: `Gamma` on each mean, likewise.
        gate_prior: `Beta` on each gate, with concentrations that broadcast to (K, D), of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_mean, log_concentration, gate_logits: (K, D) parameters. The M-step keeps concentrations between 1e-4 and
            1e6.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a start of another shape or out of range, a prior that
            does not fit.

    Reference:
        Greene (1994), "Accounting for excess zeros and sample selection in Poisson and negative binomial regression
        models".

    >>> import torch
    >>> emission = ZeroInflatedNegativeBinomialEmission(2, 1, mean=[[1.0], [2.0]], gate=0.5, noise=0.0)
    >>> emission(torch.tensor([0, 1])).mean.detach().T
    tensor([[0.5000, 1.0000]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        mean: Any = None,
        concentration: Any = 1.0,
        gate: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        mean_prior: Any = None,
        gate_prior: Any = None,
        generator: Generator | None = None,
    ):
        options = {"noise": noise, "prior": prior, "mean_prior": mean_prior, "generator": generator}
        super().__init__(num_states, dim, mean=mean, concentration=concentration, **options)
        self._start_gate(gate, noise, gate_prior, generator)
