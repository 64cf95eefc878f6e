"""The log-density of the same values in every state, without a number for every state, value and event entry.

The plain `fn.log_prob(value)` broadcasts: K states, N values and events of D entries make tensors of K N D numbers.
In an exponential family the values and the parameters meet in a matrix product only,

    log p(x | k) = sum_d phi(x_d) . eta_kd - a_k + h(x),

which is faster by an order of magnitude, with its gradient too.
"""

from collections.abc import Callable
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid

from pyrohmm.distributions.padding import fill_unread


def log_prob(fn: torch.distributions.Distribution, value: Tensor, read: Tensor | None = None) -> Tensor:
    """`fn.log_prob(value)`, by a matrix product where many values share the parameters.

    This is so for Bernoulli, Poisson and Categorical distributions and arrays of independent ones, if the batch shape
    of `fn` has size one, or is expanded, somewhere where the value's has more. Any other distribution is asked itself.

    Args:
        fn: any distribution.
        value: (*batch, *event), batch broadcasts with the batch shape of `fn`.
        read: bool, broadcasts with batch; False where the value must not be read. It may be anything there, even NaN;
            the result is then finite and without meaning. Default: all True.

    Returns:
        Of the batch shape of `fn`, value and read, broadcast. After a product, what only `fn` varies over, such as
        its states, lies side by side in memory.

    Raises:
        ValueError: a value is not in the support, if `fn` validates its arguments.

    Example:
        >>> fn = dist.Bernoulli(torch.tensor([[0.5, 0.5], [0.1, 0.9]])).to_event(1)
        >>> log_prob(fn, torch.tensor([[0.0, 1.0], [1.0, 1.0]]).unsqueeze(-2)).exp()
        tensor([[0.2500, 0.8100],
                [0.2500, 0.0900]])
    """
    base: Any = fn
    event_dim = 0
    while type(base).log_prob is torch.distributions.Independent.log_prob:
        event_dim += base.reinterpreted_batch_ndims
        base = base.base_dist
    family = _FAMILIES.get(type(base).log_prob)
    if family is None or value.shape[max(value.dim() - event_dim, 0) :] != fn.event_shape or not value.numel():
        return _plain(fn, value, read)
    batch_dim = len(base.batch_shape) - event_dim
    parameter = family.parameter(base, batch_dim)
    shared = _shared(parameter.shape[:batch_dim], value.shape[: value.dim() - event_dim])
    if not shared or not family.regular(parameter):
        return _plain(fn, value, read)
    features = family.features(value)
    # Zero is in the support of every family here. It is put in only where something else is not, which is rare.
    if (read is not None or base._validate_args) and not family.supports(base, *features):
        if read is not None:
            value = torch.where(read[(..., *(None,) * event_dim)], value, 0)
            features = family.features(value)
        if base._validate_args:
            base._validate_sample(value)
    result = _by_matrices(family.log_prob, features, parameter, event_dim, batch_dim)
    return result.expand(torch.broadcast_shapes(fn.batch_shape, result.shape, () if read is None else read.shape))


def _plain(fn: torch.distributions.Distribution, value: Tensor, read: Tensor | None) -> Tensor:
    return fn.log_prob(value if read is None else fill_unread(value, read, fn))


def _shared(parameter: torch.Size, value: torch.Size) -> bool:
    """Whether batch shapes broadcast, and several values meet the same parameter."""
    pairs = list(zip_longest(reversed(parameter), reversed(value), fillvalue=1))
    return all(a == b or 1 in (a, b) for a, b in pairs) and any(a == 1 < b for a, b in pairs)


def _by_matrices(
    log_prob: Callable[..., Tensor], features: tuple[Tensor, ...], parameter: Tensor, event_dim: int, batch_dim: int
) -> Tensor:
    """Apply `log_prob` of a family to features of values and parameters of any broadcasting batch shapes."""
    value = features[0]
    events = value.shape[value.dim() - event_dim :].numel()
    of_value, of_parameter = value.shape[: value.dim() - event_dim], parameter.shape[:batch_dim]
    symbols = parameter.shape[batch_dim + event_dim :]
    rank = max(len(of_value), batch_dim)
    of_value = (1,) * (rank - len(of_value)) + of_value
    of_parameter = (1,) * (rank - batch_dim) + of_parameter
    # Dimensions of both, of the value only, and of the parameter only.
    both, theirs, own = [], [], []
    for dim in range(rank):
        (own if of_value[dim] == 1 else theirs if of_parameter[dim] == 1 else both).append(dim)
    order = both + theirs + own
    num_both, num_own = (prod(of_parameter[dim] for dim in dims) for dims in (both, own))
    # A batch of matrices, (both, theirs, D) and (both, own, D) or (both, own, D, V) for V symbols.
    rows = (x.reshape(*of_value, events).permute(*order, rank).reshape(num_both, -1, events) for x in features)
    parameters = parameter.reshape(*of_parameter, events, *symbols)
    parameters = parameters.permute(*order, *range(rank, rank + 1 + len(symbols)))
    result = log_prob(*rows, parameters.reshape(num_both, num_own, events, *symbols))
    result = result.reshape([max(of_value[dim], of_parameter[dim]) for dim in order])
    return result.permute(sorted(range(rank), key=order.__getitem__))


class _Family(NamedTuple):
    """A family of distributions.

    Attributes:
        parameter: of a distribution and its number of batch dimensions, not expanded along them.
        regular: whether no product with the parameter is 0 * inf, of which torch makes 0.
        features: what the density takes of a value, the first being the value itself.
        supports: whether all of a value, given by its features, is in the support of a distribution.
        log_prob: (R, N, K), of features (R, N, D) by a parameter (R, K, D), or (R, K, D, V) for V symbols.
    """

    parameter: Callable[[Any, int], Tensor]
    regular: Callable[[Tensor], Any]
    features: Callable[[Tensor], tuple[Tensor, ...]]
    supports: Callable[..., Any]
    log_prob: Callable[..., Tensor]


def _logits(fn: Any, batch_dim: int) -> Tensor:
    if "logits" in vars(fn):
        return _unexpanded(fn.logits, batch_dim)
    binary = isinstance(fn, torch.distributions.Bernoulli)
    return probs_to_logits(_unexpanded(fn.probs, batch_dim), is_binary=binary)


def _rate(fn: Any, batch_dim: int) -> Tensor:
    return _unexpanded(fn.rate, batch_dim)


def _unexpanded(parameter: Tensor, batch_dim: int) -> Tensor:
    """With size one in batch dimensions that were expanded."""
    strides = parameter.stride()
    sizes = [1 if i < batch_dim and strides[i] == 0 else size for i, size in enumerate(parameter.shape)]
    # Not a slice, whose gradient would be mostly zeros of the expanded size.
    return parameter if sizes == list(parameter.shape) else parameter.as_strided(sizes, strides)


def _alone(value: Tensor) -> tuple[Tensor]:
    return (value,)


def _supports(fn: Any, value: Tensor) -> Tensor:
    return fn.support.check(value).all()


def _with_complement(value: Tensor) -> tuple[Tensor, Tensor]:
    return value, 1 - value


def _are_bits(fn: Any, value: Tensor, complement: Tensor) -> Any:
    # Comparisons of floats and reductions of truths, by which torch checks it, take longer than all the density.
    smallest, largest = (value * complement).aminmax()
    return (smallest == 0) & (largest == 0)


def _bernoulli(value: Tensor, complement: Tensor, logits: Tensor) -> Tensor:
    # Not x l - softplus(l), the difference of large numbers: these are of one sign, and the sum as accurate as they.
    value, logits = _promoted(value, logits)
    return torch.baddbmm(value @ logsigmoid(logits).mT, complement.to(value.dtype), logsigmoid(-logits).mT)


def _poisson(value: Tensor, rate: Tensor) -> Tensor:
    value, rate = _promoted(value, rate)
    return value @ rate.log().mT - rate.sum(-1).unsqueeze(-2) - (value + 1).lgamma().sum(-1, keepdim=True)


def _categorical(value: Tensor, logits: Tensor) -> Tensor:
    # A row for each symbol and event entry of each matrix, a column for each of the states: looked up together.
    num_matrices, num_states, num_events, num_symbols = logits.shape
    table = logits.permute(0, 2, 3, 1).reshape(-1, num_states)
    first = num_symbols * torch.arange(num_matrices * num_events, device=value.device)
    rows = value.long() + first.reshape(num_matrices, 1, num_events)
    return table.index_select(0, rows.reshape(-1)).reshape(*rows.shape, num_states).sum(-2)


def _promoted(value: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(value.dtype, parameter.dtype)
    return value.to(dtype), parameter.to(dtype)


def _finite(parameter: Tensor) -> Tensor:
    return parameter.isfinite().all()


# By the method that computes it: a subclass with a density of its own is another family. Pyro's methods hand over to
# torch's but for special cases.
_BERNOULLI = _Family(_logits, _finite, _with_complement, _are_bits, _bernoulli)
_POISSON = _Family(_rate, lambda rate: _finite(rate.log()), _alone, _supports, _poisson)
_CATEGORICAL = _Family(_logits, lambda logits: True, _alone, _supports, _categorical)
_FAMILIES: dict[Any, _Family] = {
    torch.distributions.Bernoulli.log_prob: _BERNOULLI,
    torch.distributions.Poisson.log_prob: _POISSON,
    dist.Poisson.log_prob: _POISSON,
    torch.distributions.Categorical.log_prob: _CATEGORICAL,
    dist.Categorical.log_prob: _CATEGORICAL,
}
