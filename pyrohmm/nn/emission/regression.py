"""Emissions whose parameters are linear in the inputs or in earlier observations, with an M-step."""

from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import context_inputs, count, jitter, join, previous_values, select, start
from pyrohmm.nn._prior import normal_log_prob, normal_prior
from pyrohmm.nn.emission.entries import independent
from pyrohmm.nn.emission.gaussian import NARROW, GaussianEmission, filled_in, total_variance
from pyrohmm.nn.emission.table import TableEmission
from pyrohmm.nn.part import EMPTY, LEAST_WEIGHT, Events, Statistics, add_up, assign, blocks, table, weighted_sums
from pyrohmm.nn.priors import InverseWishart

# Of the largest eigenvalue of a matrix with unit diagonal. In directions with less the data say nothing.
SINGULAR = 1e-11
# In nats for each step. A Newton step that promises less is not taken: parameters whose best value is infinite, e.g.
# those of a state that only has zeros, so stay finite.
LEAST_GAIN = 1e-16


class _OnFeatures(TableEmission):
    """A predictor W_k f + b_k of features f, which are the last observations and the inputs.

    A subclass has the parameters of the other parts of its law, and b under the name `_bias`.
    """

    _bias: str
    prior_weight: Tensor | None
    prior_bias: Tensor | None

    def _set_up(self, order: int, context: int, weight: Any, prior: Any, bias_prior: Any) -> None:
        self.order, self.context = order, context
        dim = self.event_shape.numel()
        shape = self.num_states, dim, order * dim + context
        self.weight = nn.Parameter(start("weight", 0.0 if weight is None else weight, shape))
        self.register_buffer("prior_weight", normal_prior(prior, shape))
        self.register_buffer("prior_bias", normal_prior(bias_prior, shape[:2], "bias_prior"))

    def _law(self, predictor: Tensor, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        raise NotImplementedError

    def forward(
        self,
        state: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> TorchDistributionMixin:
        """The law of an observation in `state`.

        Args:
            state: int64 of any shape, e.g. (K, 1, 1) if enumerated.
            inputs: (..., C); not read if the part was built without `context`.
            previous: (..., order * D), the last observations, newest first; not read if `order` is 0.
            observed: bool (..., D), False at entries that are missing: the law is that of the others.

        Returns:
            A distribution with batch shape broadcast(state.shape, inputs.shape[:-1], previous.shape[:-1]) and event
            shape (D,).

        Raises:
            TypeError: `state` is not int64.
            ValueError: `inputs` or `previous` missing or of another size.
        """
        weight = select(self.weight, state, 2)
        features = self._features(inputs, previous).to(weight.dtype)
        # Not a matrix product, which would copy the weights for each step.
        moved = torch.einsum("...df,...f->...d", weight, features)
        return self._law(select(getattr(self, self._bias), state) + moved, state, observed)

    def _features(self, inputs: Tensor | None, previous: Tensor | None) -> Tensor:
        features = []
        if self.order:
            features.append(previous_values(previous, self.order, self.order * self.event_shape.numel()))
        if self.context:
            features.append(context_inputs(inputs, self.context))
        return join(features)

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the priors, up to a constant, () or (R,); see `Part`."""
        total = super().log_prior()
        if self.prior_weight is not None:
            total = total + normal_log_prob(table(self.weight, 3), self.prior_weight).sum((-3, -2, -1))
        if self.prior_bias is not None:
            bias = table(getattr(self, self._bias), 2)
            total = total + normal_log_prob(bias, self.prior_bias).sum((-2, -1))
        return total

    def _coefficients(self) -> Tensor:
        """[W b], (*lead, K, D, F + 1) in float64."""
        weight, bias = table(self.weight.detach(), 3), table(getattr(self, self._bias).detach(), 2)
        return torch.cat([weight, bias.unsqueeze(-1)], -1).double()

    def _with_prior(self, curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the objective with the prior; arguments as for `_step`."""
        loc, precision = slope.new_zeros(2, *slope.shape[-3:])
        if self.prior_weight is not None:
            loc[..., :-1], precision[..., :-1] = _with_precision(self.prior_weight)
        if self.prior_bias is not None:
            loc[..., -1], precision[..., -1] = _with_precision(self.prior_bias)
        own = precision.reshape(self.num_states, -1, curvature.shape[-1])
        return curvature + own.diag_embed(), slope + (loc - self._coefficients()) * precision

    def _step(self, curvature: Tensor, slope: Tensor) -> Tensor:
        """Newton's step of the coefficients that are not frozen.

        Args:
            curvature: minus the second derivative, (*lead, K, D or 1, F + 1, F + 1); or, if the entries depend on
                each other, (*lead, K, 1, D (F + 1), D (F + 1)).
            slope: (*lead, K, D, F + 1).

        Returns:
            (*lead, K, D, F + 1), 0 in directions without curvature.
        """
        dim, width = slope.shape[-2:]
        free = [self.weight.requires_grad] * (width - 1) + [getattr(self, self._bias).requires_grad]
        coupled = curvature.shape[-1] > width
        moving = torch.tensor(free * dim if coupled else free, device=slope.device).nonzero()[:, 0]
        flat = slope.flatten(-2).unsqueeze(-2) if coupled else slope
        step = torch.zeros_like(flat)
        if len(moving):
            step[..., moving] = _solve(curvature[..., moving[:, None], moving], flat[..., moving])
        return step.reshape(slope.shape)

    def _move(self, coefficients: Tensor) -> None:
        assign(self.weight, coefficients[..., :-1])
        assign(getattr(self, self._bias), coefficients[..., -1])


class _LinearGaussian(_OnFeatures, GaussianEmission):
    """A Gaussian whose mean is linear in the features."""

    _bias = "loc"

    def __init__(
        self,
        num_states: int,
        dim: int,
        covariance: Any,
        order: int,
        context: int,
        weight: Any,
        prior: Any,
        bias_prior: Any,
        noise_prior: Any,
        **start: Any,
    ):
        super().__init__(num_states, dim, covariance, **start)
        self._set_up(order, context, weight, prior, bias_prior)
        if noise_prior is None:
            return
        family = InverseWishart if covariance in ("full", "tied") else torch.distributions.InverseGamma
        if not isinstance(noise_prior, family):
            raise TypeError(
                f"noise_prior: expected an {family.__name__} for covariance={covariance!r}, got "
                f"{type(noise_prior).__name__}"
            )
        self._set_covariance_prior(noise_prior, "noise_prior")

    def _law(self, predictor: Tensor, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return self._about(predictor, state, observed)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Products of the features and a one, f, and of the data about `centre`; see `TableEmission`.

        With "full" and "tied", entries that are missing stand with their moments given the others under the present
        parameters.

        Returns:
            "gram" (*lead, K, 1, F + 1, F + 1), of f with itself, with D in place of 1 where entries are missing with
            "diag" and "spherical"; "cross" (*lead, K, D, F + 1), of x with f; "second" (*lead, K, D) or
            (*lead, K, D, D), of x with itself.
        """
        known = self._features(inputs, previous)
        full = self.covariance in ("full", "tied")
        if observed is not None and observed.all():
            observed = None
        if full and observed is not None:
            return self._expected_with_missing(x, weights, known, observed)
        dim, width = x.shape[-1], known.shape[-1] + 1
        each = dim if observed is not None else 1

        def products(rows: slice) -> Tensor:
            block, f = x[rows].double() - self.centre.double(), _and_one(known[rows])
            gram = _outer(f, f).unsqueeze(-2)
            if observed is not None:
                block = torch.where(observed[rows], block, 0.0)
                gram = gram * observed[rows].double().unsqueeze(-1)
            second = _outer(block, block) if full else block.square()
            return torch.cat([gram.flatten(-2), _outer(block, f), second], -1)

        sizes = [each * width * width, dim * width, dim * dim if full else dim]
        gram, cross, second = weighted_sums(weights, products, sum(sizes)).split(sizes, -1)
        return {
            "gram": gram.unflatten(-1, (each, width, width)),
            "cross": cross.unflatten(-1, (dim, width)),
            "second": second.unflatten(-1, (dim, dim)) if full else second,
        }

    def _expected_with_missing(self, x: Tensor, weights: Tensor, known: Tensor, observed: Tensor) -> Statistics:
        centre = self.centre.double()
        coefficients, covariance = self._coefficients(), self._covariances()
        sums: Statistics = {}
        patterns, which = observed.unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            rows = (which == i).nonzero()[:, 0]
            weight, f = weights[..., rows, :].double().mT, _and_one(known[rows])
            mean = f @ coefficients.mT
            filled, rest = filled_in(x[rows].double(), mean, covariance, pattern)
            filled = filled - centre
            scaled = filled * weight.unsqueeze(-1)
            products = {
                "gram": (f.mT @ (f * weight.unsqueeze(-1))).unsqueeze(-3),
                "cross": scaled.mT @ f,
                "second": scaled.mT @ filled + weight.sum(-1)[..., None, None] * rest,
            }
            add_up(sums, products)
        return sums

    def maximize(self, statistics: Statistics) -> Events:
        """Set weights and covariances to better ones, with no prior the best ones; see `TableEmission`."""
        gram, cross, second = (statistics[name] for name in ("gram", "cross", "second"))
        full = self.covariance in ("full", "tied")
        weight = gram[..., -1, -1]
        empty = weight <= LEAST_WEIGHT
        centre = torch.zeros(cross.shape[-2:]).to(cross)
        centre[:, -1] = self.centre
        old = self._coefficients()
        slope = cross - _times(gram, old - centre)
        step = self._least_squares(gram, slope)
        self._move(torch.where(empty.unsqueeze(-1), old, old + step))

        # Squares about the means as they are now: in the parameters' own precision, and perhaps frozen.
        new = self._coefficients() - centre
        first, predicted = cross[..., -1], _times(gram, new)
        wide = weight.expand_as(first)
        if not full:
            variance = total_variance(wide, first, second, self.centre.double())
            squares = second + (new * (predicted - 2 * cross)).sum(-1)
            return {EMPTY: empty.any(-1), NARROW: self._set_scales(squares, wide, empty.expand_as(first), variance)}
        variance = total_variance(wide, first, second.diagonal(dim1=-2, dim2=-1), self.centre.double())
        product = new @ cross.mT
        squares = second - product - product.mT + new @ predicted.mT
        narrow = self._set_covariances(squares, weight[..., 0], empty[..., 0], variance)
        return {EMPTY: empty[..., 0], NARROW: narrow}

    def _least_squares(self, gram: Tensor, slope: Tensor) -> Tensor:
        """The step to the best coefficients, given the covariance where a prior makes it matter."""
        if self.prior_weight is None and self.prior_bias is None:
            return self._step(gram, slope)
        if self.covariance in ("full", "tied"):
            # The entries depend on each other: one system for all coefficients of a state.
            precision = torch.linalg.inv(self._covariances())
            curvature = torch.einsum("...de,...fg->...dfeg", precision, gram.squeeze(-3))
            curvature = curvature.flatten(-4, -3).flatten(-2).unsqueeze(-3)
            return self._step(*self._with_prior(curvature, precision @ slope))
        spherical = self.covariance == "spherical"
        precision = (-2 * table(self.log_scale.detach(), 1 if spherical else 2).double()).exp()
        precision = precision.unsqueeze(-1).expand(*precision.shape, slope.shape[-2]) if spherical else precision
        curvature = precision[..., None, None] * gram
        return self._step(*self._with_prior(curvature, precision.unsqueeze(-1) * slope))


class LinearRegressionEmission(_LinearGaussian):
    """D real numbers whose means are linear in the inputs c: p(x | z = k, c) = Normal(x; W_k c + b_k, S_k).

    The M-step is weighted least squares, in closed form without a prior on weights or b; with one, these and the
    covariances are improved in turn. Directions of the inputs in which the data do not vary leave the weights as they
    are.

    Args:
        num_states: K.
        dim: D.
        context: C, the size of the inputs. Inputs of about unit size lose no digits.
        covariance: of what is left, as in `GaussianEmission`.
        weight: the start of W, what broadcasts to (K, D, C), in units of the data for each unit of the inputs; zero
            if None.
        loc: the start of b, as in `GaussianEmission`.
        scale, noise, least_scale: as in `GaussianEmission`; the noise is added to b.
        prior: `Normal` on each weight, with parameters that broadcast to (K, D, C): ridge regression.
        bias_prior: `Normal` on each entry of b, likewise with (K, D).
        noise_prior: on the variances of what is left, `InverseGamma`, with parameters that broadcast to (K, D) for
            "diag", (K, 1) for "spherical"; for "full" and "tied" `InverseWishart` on the covariances.
        generator: source of the noise; torch's global one if None.

    Attributes:
        weight: (K, D, C) parameter.
        loc: (K, D) parameter, b.
        log_scale, lower, centre: as in `GaussianEmission`.
        num_states, context, event_shape, order: K, C, (D,), 0.

    Raises:
        TypeError, ValueError: as `GaussianEmission`, or a `weight` or `prior` that does not fit.

    Reference:
        Bengio and Frasconi (1995), "An input output HMM architecture".

    >>> emission = LinearRegressionEmission(1, 1, 1)
    >>> inputs = torch.tensor([[0.0], [1.0], [2.0]])
    >>> x = 3 * inputs - 1
    >>> _ = emission.maximize(emission.expected_statistics(x, torch.ones(3, 1), inputs))
    >>> [round(value.item(), 4) for value in (emission.weight, emission.loc)]
    [3.0, -1.0]
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        context: int,
        covariance: Literal["diag", "full", "tied", "spherical"] = "diag",
        *,
        weight: Any = None,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: Any = None,
        bias_prior: Any = None,
        noise_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(
            num_states,
            dim,
            covariance,
            0,
            count("context", context),
            weight,
            prior,
            bias_prior,
            noise_prior,
            loc=loc,
            scale=scale,
            noise=noise,
            least_scale=least_scale,
            generator=generator,
        )


class LinearAutoregressiveEmission(_LinearGaussian):
    r"""D real numbers whose means are linear in the last ones, in each state with other coefficients.

    .. math:: p(x_t \mid z_t = k, c_t, x_{<t}) =
        \mathrm{Normal}\bigl(x_t;\; b_k + \sum_{l=1}^{L} A_{kl} x_{t-l} + W_k c_t,\; S_k\bigr)

    With a weight matrix of [A_k1 ... A_kL W_k] it is a `LinearRegressionEmission`, fitted by the same least squares.
    Before the start, and where they are missing, earlier observations are 0.

    Args:
        num_states: K.
        dim: D.
        order: L, the number of last observations.
        covariance: of what is left, as in `GaussianEmission`.
        context: C, the size of the inputs; 0 for none.
        weight: the start, what broadcasts to (K, D, L D + C); zero if None.
        loc, scale, noise, least_scale, generator: as in `LinearRegressionEmission`.
        prior: `Normal` on each weight, with parameters that broadcast to (K, D, L D + C).
        bias_prior, noise_prior: as in `LinearRegressionEmission`.

    Attributes:
        weight: (K, D, L D + C) parameter.
        loc, log_scale, lower, centre: as in `LinearRegressionEmission`.
        num_states, context, event_shape, order: K, C, (D,), L.

    Raises:
        TypeError, ValueError: as `LinearRegressionEmission`.

    Reference:
        Poritz (1982), "Linear predictive hidden Markov models and the speech signal"; Hamilton (1989), "A new approach
        to the economic analysis of nonstationary time series and the business cycle".

    >>> emission = LinearAutoregressiveEmission(2, 3, order=2, weight=0.1)
    >>> law = emission(torch.arange(2).reshape(2, 1, 1), previous=torch.ones(5, 7, 6))
    >>> law.batch_shape, law.event_shape, emission.weight.shape
    (torch.Size([2, 5, 7]), torch.Size([3]), torch.Size([2, 3, 6]))
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        order: int = 1,
        covariance: Literal["diag", "full", "tied", "spherical"] = "full",
        *,
        context: int = 0,
        weight: Any = None,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: Any = None,
        bias_prior: Any = None,
        noise_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(
            num_states,
            dim,
            covariance,
            count("order", order),
            count("context", context, least=0),
            weight,
            prior,
            bias_prior,
            noise_prior,
            loc=loc,
            scale=scale,
            noise=noise,
            least_scale=least_scale,
            generator=generator,
        )


class _GeneralisedLinear(_OnFeatures):
    """D independent entries of an exponential family whose natural parameters are linear in the inputs.

    A subclass says what the mean of an entry is, and by what curvature to step, given the natural parameters.
    """

    _bias = "bias"

    def __init__(self, num_states: int, dim: int, context: int, weight: Any, prior: Any, bias_prior: Any, bias: Tensor):
        super().__init__(num_states, (count("dim", dim),))
        self._set_up(0, count("context", context), weight, prior, bias_prior)
        self.bias = nn.Parameter(bias)

    def _mean_and_curvature(self, predictor: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _damping(self, step: Tensor) -> Tensor:
        """The part of each entry's step (*lead, K, D, F + 1) to take, (*lead, K, D)."""
        return step.new_ones(step.shape[:-1])

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """The parabola that stands for the expected log-density about the present parameters; see `TableEmission`.

        Its slope is that of the coefficients 0, so that sums taken at different parameters can be added up, too.

        Returns:
            "weight" (*lead, K, D), "slope" (*lead, K, D, C + 1), "curvature" (*lead, K, D, C + 1, C + 1).
        """
        known = self._features(inputs, previous)
        coefficients = self._coefficients()
        dim, width = coefficients.shape[-2:]
        sums: Statistics = {}
        for rows in blocks(len(x), max(weights[..., 0, :].numel() * dim, width * width)):
            f, block = _and_one(known[rows]), x[rows].double().mT
            # (*lead, K, D, steps)
            predictor = coefficients @ f.mT
            mean, curvature = self._mean_and_curvature(predictor)
            weight = weights[..., rows, :].double().mT.unsqueeze(-2).expand(*weights.shape[:-2], -1, dim, -1)
            if observed is not None:
                seen = observed[rows].mT
                block, weight = torch.where(seen, block, 0.0), weight * seen
            products = {
                "weight": weight.sum(-1),
                "slope": (weight * (block - mean + curvature * predictor)) @ f,
                "curvature": ((weight * curvature) @ _outer(f, f)).unflatten(-1, (width, width)),
            }
            add_up(sums, products)
        return sums

    def maximize(self, statistics: Statistics) -> Events:
        """One step uphill of weights and biases, like Newton's; see `TableEmission`."""
        weight, slope, curvature = (statistics[name] for name in ("weight", "slope", "curvature"))
        coefficients = self._coefficients()
        curvature, slope = self._with_prior(curvature, slope - _times(curvature, coefficients))
        step = self._step(curvature, slope)
        empty = weight <= LEAST_WEIGHT
        stay = empty | ((step * slope).sum(-1) <= LEAST_GAIN * weight)
        step = step * self._damping(step).unsqueeze(-1)
        self._move(coefficients + torch.where(stay.unsqueeze(-1), 0.0, step))
        return {EMPTY: empty.any(-1)}


class LogisticRegressionEmission(_GeneralisedLinear):
    r"""D independent bits on inputs c: p(x_d = 1 | z = k, c) = sigmoid(W_k c + b_k)_d.

    The M-step goes to the maximum of a quadratic lower bound that touches the objective at the present parameters, so
    it never falls: with the predictor :math:`\eta`, its curvature is :math:`\tanh(\eta / 2) / (2 \eta)` for each step.
    It is EM with Polya-Gamma variables, and does not reach the maximum at once.

    Args:
        num_states: K.
        dim: D.
        context: C, the size of the inputs.
        weight: the start of W, what broadcasts to (K, D, C), for each unit of the inputs; zero if None.
        probs: the start of sigmoid(b), as in `BernoulliEmission`.
        noise: size of the normal noise added to b at the start, unless `probs` is (K, D).
        prior: `Normal` on each weight, with parameters that broadcast to (K, D, C).
        bias_prior: `Normal` on each bias, likewise with (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        weight: (K, D, C) parameter.
        bias: (K, D) parameter.
        num_states, context, event_shape, order: K, C, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a start or a `prior` that does not fit.

    Reference:
        Jaakkola and Jordan (2000), "Bayesian parameter estimation via variational methods"; Ashwood et al. (2022),
        "Mice alternate between discrete strategies during perceptual decision-making".

    >>> emission = LogisticRegressionEmission(1, 1, 1, weight=2.0, probs=[[0.5]])
    >>> emission(torch.tensor(0), torch.tensor([[0.0], [1.0]])).mean.detach()
    tensor([[0.5000],
            [0.8808]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        context: int,
        *,
        weight: Any = None,
        probs: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        bias_prior: Any = None,
        generator: Generator | None = None,
    ):
        shape = count("num_states", num_states), count("dim", dim)
        mean = start("probs", 0.5 if probs is None else probs, shape, 0, 1)
        bias = mean.logit() + noise * jitter(probs, shape, generator)
        super().__init__(*shape, context, weight, prior, bias_prior, bias)

    def _law(self, predictor: Tensor, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return independent(dist.Bernoulli(logits=predictor), observed)

    def _mean_and_curvature(self, predictor: Tensor) -> tuple[Tensor, Tensor]:
        small = predictor.abs() < 1e-4
        size = torch.where(small, 1.0, predictor)
        curvature = torch.where(small, 0.25 - predictor.square() / 48, (size / 2).tanh() / (2 * size))
        return predictor.sigmoid(), curvature


class PoissonRegressionEmission(_GeneralisedLinear):
    r"""D independent counts on inputs c: p(x_d | z = k, c) = Poisson(x_d; exp(W_k c + b_k)_d).

    The M-step is Newton's, but shorter: if no step moves the logarithm of a rate by more than r, the objective gains
    at least

    .. math:: \delta^T H \delta \, \bigl(t - (e^{t r} - 1 - t r) / r^2\bigr)

    by the part t of Newton's step :math:`\delta`, which is positive and largest at :math:`t = \log(1 + r) / r`. Near
    the maximum t is 1.

    Args:
        num_states: K.
        dim: D.
        context: C, the size of the inputs.
        weight: the start of W, what broadcasts to (K, D, C), for each unit of the inputs; zero if None.
        rate: the start of exp(b) in counts for each step, as in `PoissonEmission`.
        noise: size of the normal noise added to b at the start, unless `rate` is (K, D).
        prior: `Normal` on each weight, with parameters that broadcast to (K, D, C).
        bias_prior: `Normal` on each bias, likewise with (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        weight: (K, D, C) parameter.
        bias: (K, D) parameter.
        reach: (C,) buffer, the largest absolute inputs that `expected_statistics` has met, from which r is bounded.
        num_states, context, event_shape, order: K, C, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a start or a `prior` that does not fit.

    Reference:
        McCullagh and Nelder (1989), "Generalized linear models"; for the M-step, Boyd and Vandenberghe (2004), "Convex
        optimization", section 9.6.

    >>> emission = PoissonRegressionEmission(1, 1, 1, weight=1.0, rate=[[2.0]])
    >>> emission(torch.tensor(0), torch.tensor([[0.0], [1.0]])).mean.detach()
    tensor([[2.0000],
            [5.4366]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        context: int,
        *,
        weight: Any = None,
        rate: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        bias_prior: Any = None,
        generator: Generator | None = None,
    ):
        shape = count("num_states", num_states), count("dim", dim)
        mean = start("rate", 1.0 if rate is None else rate, shape, 0)
        bias = mean.log() + noise * jitter(rate, shape, generator)
        super().__init__(*shape, context, weight, prior, bias_prior, bias)
        self.register_buffer("reach", torch.zeros(context))
        self._shared = ("reach",)

    def _law(self, predictor: Tensor, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return independent(dist.Poisson(predictor.exp()), observed)

    def _mean_and_curvature(self, predictor: Tensor) -> tuple[Tensor, Tensor]:
        # A rate beyond exp(80) is no number that float32 could square.
        rate = predictor.clamp_max(80).exp()
        return rate, rate

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """As those of `LogisticRegressionEmission`; also remembers the largest inputs, which are no sum."""
        if len(x):
            largest = self._features(inputs, previous).abs().amax(0).to(self.reach)
            self.reach = torch.maximum(self.reach, largest)
        return super().expected_statistics(x, weights, inputs, previous, observed)

    def _damping(self, step: Tensor) -> Tensor:
        reach = torch.cat([self.reach.double(), self.reach.new_ones(1).double()])
        r = (step.abs() * reach).sum(-1).clamp_min(1e-12)
        return r.log1p() / r

    def features(self, x: Tensor) -> Tensor:
        """Square roots of the counts, whose spread does not grow with their mean, (M, D)."""
        return x.sqrt()


def _with_precision(prior: Tensor) -> tuple[Tensor, Tensor]:
    """Location and precision of a Normal prior, in float64."""
    loc, scale = prior.double().unbind(-1)
    return loc, scale**-2


def _and_one(features: Tensor) -> Tensor:
    """The features (steps, F) and a one, in float64."""
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], -1)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """All products of an entry of one with an entry of the other, beside each other in the last dim."""
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (..., D or 1, F, F) times vectors (..., D, F)."""
    return torch.einsum("...fg,...g->...f", matrix, vector)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The smallest solution of positive semidefinite systems: matrices (..., D or 1, F, F), right sides (..., D, F)."""
    # With a unit diagonal first, so that the units of the features do not matter.
    size = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(matrix / (size.unsqueeze(-1) * size.unsqueeze(-2)))
    known = values > SINGULAR * values[..., -1:]
    inverse = torch.where(known, 1 / torch.where(known, values, 1.0), 0.0)
    return _times(vectors, inverse * _times(vectors.mT, right / size)) / size
