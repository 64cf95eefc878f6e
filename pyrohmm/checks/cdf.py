"""How likely a law holds what is below and what is above a value: its distribution function, with both tails."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import scipy
import torch
from torch import Tensor

from pyrohmm.nn.emission._laws import Multinomial
from pyrohmm.nn.emission.composite import Streams
from pyrohmm.nn.emission.entries import ObservedEntries, ObservedGaussian
from pyrohmm.nn.emission.mixture import Mixture


class Tails(NamedTuple):
    """The probabilities of less than a value, of the value itself, and of more; float64, they sum to 1.

    The last is no difference from 1, so that both tails keep their digits. In a mixture each is the mixture of the
    components' own.
    """

    below: Tensor
    at: Tensor
    above: Tensor


def tails(law: Any, value: Tensor) -> Tails:
    r"""P(X < x), P(X = x) and P(X > x) of every entry of a value, under the marginal law of that entry.

    .. math:: F_d(x_d) = P(X_d < x_d) + P(X_d = x_d)

    The entries of vectors are taken one by one, whatever their dependence; those of a multinomial vector given its sum.
    Angles have no order of their own: theirs is from -pi to pi.

    Args:
        law: a distribution of batch shape (...) and event shape (*event).
        value: (..., *event), its batch dimensions broadcast with the law's.

    Returns:
        `Tails`, each of the broadcast shape (..., *event).

    Raises:
        TypeError: the distribution function of a law of this kind is not known.

    Example:
        >>> tails(dist.Poisson(torch.tensor([1.0, 2.0])), torch.tensor(0.0)).at
        tensor([0.3679, 0.1353], dtype=torch.float64)
        >>> tails(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.tensor([0.0, -40.0])).above
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    if isinstance(law, dist.Independent | torch.distributions.Independent):
        return tails(law.base_dist, value)
    if isinstance(law, dist.MaskedDistribution):
        return tails(law.base_dist, value)
    if isinstance(law, ObservedEntries):
        return tails(law.entries, torch.where(law.observed, value, law.filler))
    if isinstance(law, ObservedGaussian):
        return tails(law.law, torch.where(law.observed, value, 0.0))
    if isinstance(law, Streams):
        value = value if law.observed is None else torch.where(law.observed, value, 0)
        parts = []
        for stream, part in zip(law.laws, value.split(law.sizes, -1), strict=True):
            found = tails(stream, part if stream.event_shape else part.squeeze(-1))
            parts.append(found if stream.event_shape else [x.unsqueeze(-1) for x in found])
        batch = torch.broadcast_shapes(*(part[0].shape[:-1] for part in parts))
        wide = [[x.expand(*batch, -1) for x in part] for part in parts]
        return Tails(*(torch.cat(xs, -1) for xs in zip(*wide, strict=True)))
    if isinstance(law, Mixture):
        parts = [tails(component, value) for component in law.laws]
        return mixed(law.logits.movedim(-1, 0), parts, len(law.event_shape))
    if isinstance(law, dist.MixtureSameFamily | torch.distributions.MixtureSameFamily):
        event = len(law.event_shape)
        found = tails(law.component_distribution, value.unsqueeze(-1 - event))
        parts = [Tails(*part) for part in zip(*(x.unbind(x.dim() - 1 - event) for x in found), strict=True)]
        return mixed(law.mixture_distribution.logits.log_softmax(-1).movedim(-1, 0), parts, event)
    if isinstance(law, dist.ZeroInflatedDistribution):
        gate, base = _double(law.gate), tails(law.base_dist, value)
        zero, more = value == 0, value > 0
        below, at, above = ((1 - gate) * x for x in base)
        return Tails(below + gate * more, at + gate * zero, above + gate * (value < 0))
    if isinstance(law, dist.Categorical | torch.distributions.Categorical):
        return _categorical(law, value)
    for kind, rule in _RULES:
        if isinstance(law, kind):
            return rule(law, value)
    try:
        at_most = law.cdf(value).double()
    except NotImplementedError:
        raise TypeError(
            f"emission: expected laws with a distribution function, got {type(law).__name__}, whose is not known; a "
            "method cdf(value) is enough for one of your own that is continuous"
        ) from None
    if getattr(law.support, "is_discrete", True):
        raise TypeError(f"emission: expected a continuous law or a discrete one of a known kind, got {law!r}")
    return Tails(at_most, torch.zeros_like(at_most), 1 - at_most)


def mixed(log_weights: Tensor, parts: Any, event_dim: int) -> Tails:
    """The tails of a mixture.

    Args:
        log_weights: (M, ...), normalised over the first axis.
        parts: M `Tails`, or one whose tensors have the components in front, (M, ..., *event).
        event_dim: how many event dimensions the tails have beyond the weights' dimensions.
    """
    weights = log_weights.double().exp()
    weights = weights.reshape(*weights.shape, *[1] * event_dim)
    if isinstance(parts, Tails):
        return Tails(*((weights * x).sum(0) for x in parts))
    return Tails(
        *(sum(weight * x for weight, x in zip(weights, xs, strict=True)) for xs in zip(*parts, strict=True))  # type: ignore[arg-type]
    )


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().double()


def _numpy(value: Any) -> np.ndarray:
    return _double(value).cpu().numpy()


def _back(value: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _continuous(below: Any, above: Any, like: Tensor) -> Tails:
    below = _back(below, like)
    return Tails(below, torch.zeros_like(below), _back(above, like))


def _normal(loc: Tensor, scale: Tensor, value: Tensor) -> Tails:
    residual = (_double(value) - _double(loc)) / _double(scale)
    # Not torch's ndtr, which is 0 from -10 on.
    below, above = (torch.special.log_ndtr(x).exp() for x in (residual, -residual))
    return Tails(below, torch.zeros_like(residual), above)


def _student(law: Any, value: Tensor) -> Tails:
    residual, degrees = _numpy((_double(value) - _double(law.loc)) / _double(law.scale)), _numpy(law.df)
    return _continuous(scipy.special.stdtr(degrees, residual), scipy.special.stdtr(degrees, -residual), value)


def _exponential(law: Any, value: Tensor) -> Tails:
    area = (_double(law.rate) * _double(value)).clamp(min=0)
    return Tails(-(-area).expm1(), torch.zeros_like(area), (-area).exp())


def _gamma(law: Any, value: Tensor) -> Tails:
    shape, scaled = _numpy(law.concentration), _numpy(_double(law.rate) * _double(value).clamp(min=0))
    return _continuous(scipy.special.gammainc(shape, scaled), scipy.special.gammaincc(shape, scaled), value)


def _beta(law: Any, value: Tensor) -> Tails:
    ones, zeros, share = _numpy(law.concentration1), _numpy(law.concentration0), _numpy(value).clip(0, 1)
    return _continuous(scipy.special.betainc(ones, zeros, share), scipy.special.betaincc(ones, zeros, share), value)


def _von_mises(law: Any, value: Tensor) -> Tails:
    loc, concentration = _numpy(law.loc), _numpy(law.concentration)
    angle = np.remainder(_numpy(value) + np.pi, 2 * np.pi) - np.pi

    # Beyond one turn around its centre it goes on, by 1 a turn.
    def area(x: np.ndarray) -> np.ndarray:
        return scipy.stats.vonmises.cdf(x - loc, concentration)

    start = area(np.full_like(angle, -np.pi))
    below = (area(angle) - start).clip(0, 1)
    return _continuous(below, 1 - below, value)


def _discrete(at_most: Callable[[np.ndarray], Any], more: Callable[[np.ndarray], Any], value: Tensor) -> Tails:
    """From P(X <= x) and P(X > x) at whole numbers from 0 on."""
    count = np.floor(_numpy(value))
    before = np.maximum(count - 1, 0)
    zero = count <= 0
    below, above = np.where(zero, 0.0, at_most(before)), more(np.maximum(count, 0))
    # The difference of whichever tail is the smaller keeps its digits.
    at_least = np.where(zero, 1.0, more(before))
    at = np.where(below < above, at_most(np.maximum(count, 0)) - below, at_least - above)
    return Tails(_back(below, value), _back(at.clip(0, 1), value), _back(above, value))


def _poisson(law: Any, value: Tensor) -> Tails:
    rate = _numpy(law.rate)
    return _discrete(lambda k: scipy.special.pdtr(k, rate), lambda k: scipy.special.pdtrc(k, rate), value)


def _negative_binomial(law: Any, value: Tensor) -> Tails:
    size, success, failure = _numpy(law.total_count), _numpy(law.probs), _numpy(torch.sigmoid(-_double(law.logits)))
    return _discrete(
        lambda k: scipy.special.betainc(size, k + 1, failure),
        lambda k: scipy.special.betainc(k + 1, size, success),
        value,
    )


def _geometric(law: Any, value: Tensor) -> Tails:
    log_failure = np.log1p(-_numpy(law.probs))
    return _discrete(lambda k: -np.expm1((k + 1) * log_failure), lambda k: np.exp((k + 1) * log_failure), value)


def _binomial_tails(size: Any, success: Any, failure: Any, value: Tensor) -> Tails:
    def at_most(k: np.ndarray) -> Any:
        return np.where(k >= size, 1.0, scipy.special.betainc(np.maximum(size - k, 1), k + 1, failure))

    def more(k: np.ndarray) -> Any:
        return np.where(k >= size, 0.0, scipy.special.betainc(k + 1, np.maximum(size - k, 1), success))

    return _discrete(at_most, more, value)


def _bernoulli(law: Any, value: Tensor) -> Tails:
    logits = _double(law.logits)
    return _binomial_tails(1.0, _numpy(logits.sigmoid()), _numpy((-logits).sigmoid()), value)


def _binomial(law: Any, value: Tensor) -> Tails:
    logits = _double(law.logits)
    return _binomial_tails(_numpy(law.total_count), _numpy(logits.sigmoid()), _numpy((-logits).sigmoid()), value)


def _multinomial(law: Multinomial, value: Tensor) -> Tails:
    logits, count = _double(law.logits), _double(value)
    if law.observed is not None:
        count = torch.where(law.observed, count, 0.0)
        logits = torch.where(law.observed, logits, torch.finfo(torch.float64).min / 4)
    share = logits.softmax(-1)
    return _binomial_tails(_numpy(count.sum(-1, keepdim=True)), _numpy(share), _numpy(1 - share), count)


def _categorical(law: Any, value: Tensor) -> Tails:
    probs = _double(law.logits).softmax(-1)
    shape = torch.broadcast_shapes(probs.shape[:-1], value.shape)
    index = value.long().clamp(0, probs.shape[-1] - 1).expand(shape).unsqueeze(-1)
    below = torch.nn.functional.pad(probs.cumsum(-1)[..., :-1], (1, 0))
    above = torch.nn.functional.pad(probs.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
    return Tails(*(x.expand(*shape, -1).gather(-1, index).squeeze(-1) for x in (below, probs, above)))


# The first that fits; torch's classes, of which Pyro's and ours are subclasses.
_RULES: list[tuple[type, Callable[[Any, Tensor], Tails]]] = [
    (torch.distributions.Normal, lambda law, x: _normal(law.loc, law.scale, x)),
    (torch.distributions.LogNormal, lambda law, x: _normal(law.loc, law.scale, x.double().log())),
    (torch.distributions.MultivariateNormal, lambda law, x: _normal(law.loc, law.variance.sqrt(), x)),
    (torch.distributions.LowRankMultivariateNormal, lambda law, x: _normal(law.loc, law.variance.sqrt(), x)),
    (torch.distributions.StudentT, _student),
    (torch.distributions.Exponential, _exponential),
    (torch.distributions.Gamma, _gamma),
    (torch.distributions.Beta, _beta),
    (torch.distributions.VonMises, _von_mises),
    (torch.distributions.Poisson, _poisson),
    (torch.distributions.NegativeBinomial, _negative_binomial),
    (torch.distributions.Geometric, _geometric),
    (torch.distributions.Bernoulli, _bernoulli),
    (torch.distributions.Binomial, _binomial),
    (Multinomial, _multinomial),
]
