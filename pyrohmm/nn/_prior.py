"""Priors that a part can be given: which distributions, and their parameters as one buffer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyrohmm.nn._common import start
from pyrohmm.nn._conjugate import DirichletRows
from pyrohmm.nn.priors import NormalInverseGamma

# Of an edge or a start that is not forbidden. A probability of 1e-13 is as good as none, and with no smaller ones
# among the transitions the recursions in scaled space stay accurate in float32 (`pyrohmm/ops/certificate.py`).
LEAST_LOG_PROB = -30.0


def prior_buffer(
    prior: Any, family: type, names: Sequence[str], shape: tuple[int, ...], name: str = "prior"
) -> Tensor | None:
    """The parameters of a prior on a table of `shape`, beside each other: (*shape, len(names)); None for no prior.

    Args:
        prior: a distribution, possibly an `Independent` of one (`.to_event`), or None.
        family: what it must be.
        names: of its parameters.
        shape: of the table, with which the parameters must broadcast.
        name: of the argument, for errors.

    Raises:
        TypeError: the prior is of another family.
        ValueError: its shape does not fit.
    """
    if prior is None:
        return None
    base = prior
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    # Pyro's expanded distributions wrap another one.
    base = getattr(base, "base_dist", base) if not isinstance(base, family) else base
    if not isinstance(base, family):
        raise TypeError(f"{name}: expected a {family.__name__}, got {type(prior).__name__}")
    values = [getattr(base, parameter).detach() for parameter in names]
    try:
        return torch.stack([value.expand(shape) for value in values], -1).clone()
    except RuntimeError:
        got = [tuple(value.shape) for value in values]
        raise ValueError(f"{name}: expected parameters that broadcast to {shape}, got {got}") from None


def dirichlet(prior: Any, shape: tuple[int, ...], *, sparse: bool = False) -> Tensor | None:
    """The concentrations of a Dirichlet prior on the rows of a table, of `shape`; None for no prior.

    Args:
        prior: the distribution, or None.
        shape: of the table.
        sparse: whether concentrations may be below 1, where the density has no mode within.

    Raises:
        TypeError, ValueError: as `prior_buffer`, or a concentration is below 1 and may not.
    """
    buffer = prior_buffer(prior, torch.distributions.Dirichlet, ["concentration"], shape)
    if buffer is None:
        return None
    if not sparse and not (buffer >= 1).all():
        raise ValueError(f"prior: expected concentrations of at least 1, got {buffer.min().item()}")
    return buffer[..., 0]


def has_mode(concentration: Tensor | None) -> bool:
    """Whether a Dirichlet density of these concentrations is bounded."""
    return concentration is None or bool((concentration >= 1).all())


def dirichlet_law(part: Any, mask: Tensor | None = None) -> DirichletRows:
    """The Dirichlet law of the rows of a part's table of logits; a flat one without a prior."""
    # Not by the attribute, which would make it a parameter of a Pyro program that runs.
    flat = torch.ones_like(part._parameters["logits"], requires_grad=False)
    rows = flat if part.prior is None else part.prior
    return DirichletRows(rows if mask is None else rows.masked_fill(~mask, 0.0))


def dirichlet_log_prob(logits: Tensor, concentration: Tensor | None) -> Tensor:
    """sum (concentration - 1) log softmax(logits) over the last dim, 0 where a logit is -inf; 0 without a prior."""
    if concentration is None:
        return logits.new_zeros(logits.shape[:-1])
    log_probs = logits.log_softmax(-1)
    # Not a product with -inf, which would be NaN where the concentration is 1, with a gradient of NaN too.
    log_probs = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return ((concentration - 1) * log_probs).sum(-1)


def dirichlet_mode(counts: Tensor, concentration: Tensor | None, logits: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The most probable rows given counts.

    p_i = (counts_i + concentration_i - 1) / sum, but at least about exp(least).

    Args:
        counts: (*lead, ..., V), float64.
        concentration: what broadcasts with it; None for 1.
        logits: those before; -inf is kept, and rows without counts.
        least: of the results that are not -inf.

    Returns:
        the logits, normalised where there are counts, and where there are none, (*lead, ...).
    """
    if concentration is not None:
        # Of a sparse prior, without a mode within, what is on the boundary.
        counts = (counts + (concentration.double() - 1)).clamp_min(0)
    counts = counts.masked_fill(logits == -torch.inf, 0.0)
    total = counts.sum(-1, keepdim=True)
    empty = total <= 1e-8
    log_probs = (counts / total.masked_fill(empty, 1.0)).log().clamp_min(least)
    log_probs = log_probs.masked_fill(logits == -torch.inf, -torch.inf).log_softmax(-1)
    return torch.where(empty, logits.double(), log_probs), empty.squeeze(-1)


def beta_prior(prior: Any, shape: tuple[int, ...], name: str = "prior") -> Tensor | None:
    """The two concentrations of a Beta prior on a table, (*shape, 2), of ones and of zeros; None for no prior.

    Raises:
        TypeError, ValueError: as `prior_buffer`, or a concentration is below 1, where the density has no mode within.
    """
    buffer = prior_buffer(prior, torch.distributions.Beta, ["concentration1", "concentration0"], shape, name)
    if buffer is not None and not (buffer >= 1).all():
        raise ValueError(f"{name}: expected concentrations of at least 1, got {buffer.min().item()}")
    return buffer


def beta_log_prob(logits: Tensor, prior: Tensor) -> Tensor:
    """(ones - 1) log p + (zeros - 1) log(1 - p) of probabilities p = sigmoid(logits), up to a constant."""
    ones, zeros = (prior - 1).unbind(-1)
    return ones * logsigmoid(logits) + zeros * logsigmoid(-logits)


def beta_mode(ones: Tensor, zeros: Tensor, prior: Tensor | None) -> Tensor:
    """The logits of the most probable probabilities given how often there was a one and a zero, from -30 to 30."""
    if prior is not None:
        more_ones, more_zeros = (prior - 1).unbind(-1)
        ones, zeros = ones + more_ones, zeros + more_zeros
    # Rounding can leave less than none; beyond +-30 a probability is 0 or 1.
    return (ones.clamp_min(0).log() - zeros.clamp_min(0).log()).nan_to_num(0.0).clamp(-30, 30)


def gamma_prior(prior: Any, shape: tuple[int, ...], name: str = "prior") -> Tensor | None:
    """Concentration and rate of a Gamma prior on a table, (*shape, 2); None for no prior.

    Raises:
        TypeError, ValueError: as `prior_buffer`, or a concentration is below 1, where the density has no mode within.
    """
    buffer = prior_buffer(prior, torch.distributions.Gamma, ["concentration", "rate"], shape, name)
    if buffer is not None and not (buffer[..., 0] >= 1).all():
        raise ValueError(f"{name}: expected a concentration of at least 1, got {buffer[..., 0].min().item()}")
    return buffer


def gamma_log_prob(log_value: Tensor, prior: Tensor) -> Tensor:
    """(concentration - 1) log v - rate v of positive values v, given as logarithms, up to a constant."""
    concentration, rate = prior.unbind(-1)
    return (concentration - 1) * log_value - rate * log_value.exp()


def inverse_gamma_prior(prior: Any, shape: tuple[int, ...], name: str) -> Tensor | None:
    """Concentration and rate of an InverseGamma prior on a table, (*shape, 2); None for no prior.

    Raises:
        TypeError, ValueError: as `prior_buffer`.
    """
    return prior_buffer(prior, torch.distributions.InverseGamma, ["concentration", "rate"], shape, name)


def inverse_gamma_log_prob(log_value: Tensor, prior: Tensor) -> Tensor:
    """-(concentration + 1) log v - rate / v of positive values v, given as logarithms, up to a constant."""
    concentration, rate = prior.unbind(-1)
    return -(concentration + 1) * log_value - rate * (-log_value).exp()


def normal_inverse_gamma_prior(prior: Any, shape: tuple[int, ...], name: str) -> Tensor | None:
    """The four parameters of a `NormalInverseGamma` on tables of means and variances, (*shape, 4); None for no prior.

    Raises:
        TypeError, ValueError: the prior is of another family, or does not fit.
    """
    if prior is None:
        return None
    if not isinstance(prior, NormalInverseGamma):
        raise TypeError(f"{name}: expected a NormalInverseGamma, got {type(prior).__name__}")
    loc = start(f"{name}.loc", prior.loc, shape)
    others = [start(f"{name}.{field}", getattr(prior, field), shape, 0) for field in prior._fields[1:]]
    return torch.stack([loc, *others], -1)


def normal_inverse_gamma_log_prob(mean: Tensor, log_variance: Tensor, prior: Tensor) -> Tensor:
    """The log-density of means and variances, given as logarithms, up to a constant."""
    loc, strength, concentration, rate = prior.unbind(-1)
    squares = 2 * rate + strength * (mean - loc).square()
    return -(concentration + 1.5) * log_variance - 0.5 * squares * (-log_variance).exp()


def normal_prior(prior: Any, shape: tuple[int, ...], name: str = "prior") -> Tensor | None:
    """Location and scale of a Normal prior on a table, (*shape, 2); None for no prior.

    Raises:
        TypeError, ValueError: as `prior_buffer`.
    """
    return prior_buffer(prior, torch.distributions.Normal, ["loc", "scale"], shape, name)


def normal_log_prob(value: Tensor, prior: Tensor) -> Tensor:
    """-((v - loc) / scale)^2 / 2, up to a constant."""
    loc, scale = prior.unbind(-1)
    return -0.5 * ((value - loc) / scale).square()


def normal_log_prob_of(part: nn.Module, prior: Tensor) -> Tensor:
    """The sum for all parameters of a part, under one law of numbers, ()."""
    # Not by their names, which would make them sites of a Pyro program that runs.
    values = [normal_log_prob(parameter, prior).sum() for parameter in part.parameters()]
    return torch.stack(values).sum() if values else prior.new_zeros(())
