"""The log-density of the same values in every state, without a number for every state, value and event entry.

The plain `fn.log_prob(value)` broadcasts: K states, N values and events of D entries make tensors of K N D numbers.
In an exponential family the values and the parameters meet in a matrix product only,

    log p(x | k) = sum_d phi(x_d) . eta_kd - a_k + h(x),

which is faster by an order of magnitude, with its gradient too. For Gaussians the squares would be differences of large
numbers; there, where no gradient is asked for, the residuals of a block of values stay in the processor's cache.
"""

import math
import threading
from collections.abc import Callable, Iterator
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid

from pyrohmm.distributions.padding import fill_unread, waits


def log_prob(fn: torch.distributions.Distribution, value: Tensor, read: Tensor | None = None) -> Tensor:
    """`fn.log_prob(value)`, by a matrix product where many values share the parameters.

    This is so for Bernoulli, Poisson and Categorical distributions and arrays of independent ones, and without
    gradients for Normal and MultivariateNormal ones, if the batch shape of `fn` has size one, or is expanded, somewhere
    where the value's has more. Any other distribution is asked itself.

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
    # Vectors as entries of an array are too rare to be looked at.
    family = None if event_dim and base.event_shape else _FAMILIES.get(type(base).log_prob)
    batch_dim = len(base.batch_shape) - event_dim
    event_dim = len(fn.event_shape)
    if family is None or value.shape[max(value.dim() - event_dim, 0) :] != fn.event_shape or not value.numel():
        return _plain(fn, value, read)
    if not family.with_gradients and torch.is_grad_enabled():
        return _plain(fn, value, read)
    parameter = family.parameter(base, batch_dim).as_subclass(Tensor)
    shared = _shared(parameter.shape[:batch_dim], value.shape[: value.dim() - event_dim])
    if not shared or not (waits(parameter) or family.regular(parameter)):
        return _plain(fn, value, read)
    # Zero is in the support of every family here. It is put in only where something else is not, which is rare, or
    # where to find out is to wait.
    if (read is not None or base._validate_args) and (waits(value) or not family.supports(base, value)):
        if read is not None:
            value = torch.where(read[(..., *(None,) * event_dim)], value, 0)
        if base._validate_args:
            base._validate_sample(value)
    result = _by_matrices(family.log_prob, value, parameter, event_dim, batch_dim)
    return result.expand(torch.broadcast_shapes(fn.batch_shape, result.shape, () if read is None else read.shape))


def _plain(fn: torch.distributions.Distribution, value: Tensor, read: Tensor | None) -> Tensor:
    return fn.log_prob(value if read is None else fill_unread(value, read, fn))


def _shared(parameter: torch.Size, value: torch.Size) -> bool:
    """Whether batch shapes broadcast, and several values meet the same parameter."""
    pairs = list(zip_longest(reversed(parameter), reversed(value), fillvalue=1))
    return all(a == b or 1 in (a, b) for a, b in pairs) and any(a == 1 < b for a, b in pairs)


def _by_matrices(
    log_prob: Callable[..., Tensor], value: Tensor, parameter: Tensor, event_dim: int, batch_dim: int
) -> Tensor:
    """Apply `log_prob` of a family to values and parameters of any broadcasting batch shapes."""
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
    # A batch of matrices, (both, *theirs, D) and (both, own, D) or (both, own, D, V) for V symbols.
    sizes = [of_value[dim] for dim in theirs]
    rows = value.reshape(*of_value, events).permute(*order, rank).reshape(num_both, *sizes, events)
    parameters = parameter.reshape(*of_parameter, events, *symbols)
    parameters = parameters.permute(*order, *range(rank, rank + 1 + len(symbols)))
    result = log_prob(rows, parameters.reshape(num_both, num_own, events, *symbols))
    result = result.reshape([max(of_value[dim], of_parameter[dim]) for dim in order])
    return result.permute(sorted(range(rank), key=order.__getitem__))


class _Family(NamedTuple):
    """A family of distributions.

    Attributes:
        parameter: of a distribution and its number of batch dimensions, not expanded along them.
        regular: whether no product with the parameter is 0 * inf, of which torch makes 0. Not asked where that waits.
        supports: whether all of a value is in the support of a distribution.
        log_prob: (R, *N, K), of values (R, *N, D) by a parameter (R, K, D), or (R, K, D, V) for V symbols.
        with_gradients: whether it is worth while, and right, where gradients are recorded.
    """

    parameter: Callable[[Any, int], Tensor]
    regular: Callable[[Tensor], Any]
    supports: Callable[..., Any]
    log_prob: Callable[..., Tensor]
    with_gradients: bool = True


def _logits(fn: Any, batch_dim: int) -> Tensor:
    if "logits" in vars(fn):
        return _unexpanded(fn.logits, batch_dim)
    binary = isinstance(fn, torch.distributions.Bernoulli)
    return probs_to_logits(_unexpanded(fn.probs, batch_dim), is_binary=binary)


def _rate(fn: Any, batch_dim: int) -> Tensor:
    return _unexpanded(fn.rate, batch_dim)


def _loc_and_scale(fn: Any, batch_dim: int) -> Tensor:
    """(..., D, 2)."""
    loc, scale = (_unexpanded(parameter, batch_dim) for parameter in (fn.loc, fn.scale))
    return torch.stack(torch.broadcast_tensors(loc, scale), -1)


def _loc_and_factor(fn: Any, batch_dim: int) -> Tensor:
    """(..., D, 1 + D): the mean, and beside it the Cholesky factor of the covariance."""
    loc, factor = _unexpanded(fn.loc, batch_dim).unsqueeze(-1), fn._unbroadcasted_scale_tril
    batch = torch.broadcast_shapes(loc.shape[:-2], factor.shape[:-2])
    return torch.cat([part.expand(batch + part.shape[-2:]) for part in (loc, factor)], -1)


def _unexpanded(parameter: Tensor, batch_dim: int) -> Tensor:
    """With size one in batch dimensions that were expanded."""
    strides = parameter.stride()
    sizes = [1 if i < batch_dim and strides[i] == 0 else size for i, size in enumerate(parameter.shape)]
    # Not a slice, whose gradient would be mostly zeros of the expanded size.
    return parameter if sizes == list(parameter.shape) else parameter.as_strided(sizes, strides)


def _supports(fn: Any, value: Tensor) -> Tensor:
    return fn.support.check(value).all()


class _Scratch(threading.local):
    """Memory that is kept: for numbers needed for a moment, to ask the system for new pages takes the longest."""

    size = 2**18  # numbers: as many as stay in a core's cache

    def __init__(self):
        self.buffers: dict[torch.dtype, Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """Room for a tensor of this shape and dtype, until the next call."""
        if tensor.numel() > self.size:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if tensor.dtype not in self.buffers:
            with torch.inference_mode(False):
                self.buffers[tensor.dtype] = torch.empty(self.size, dtype=tensor.dtype)
        return self.buffers[tensor.dtype][: tensor.numel()].view(tensor.shape)


_scratch = _Scratch()


def _blocks(values: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors in pieces of their first dimension, the first of which are about as large as the scratch memory."""
    step = max(1, _scratch.size * len(values) // max(1, values.numel()))
    return zip(*(tensor.split(step) for tensor in (values, *others)), strict=True)


def _complement(value: Tensor) -> Tensor:
    """1 - value, in scratch memory."""
    return torch.sub(1, value, out=_scratch.like(value))


def _are_bits(fn: Any, value: Tensor) -> bool:
    # Comparisons of floats and reductions of truths, by which torch checks it, take longer than all the density.
    value = value.detach().view(1) if value.dim() == 0 else value.detach()
    if value.device.type == "cpu" and value.is_floating_point():
        extremes = [_complement(block).mul_(block).aminmax() for (block,) in _blocks(value)]
    else:
        extremes = [(value * (1 - value)).aminmax()]
    return all(bool((smallest == 0) & (largest == 0)) for smallest, largest in extremes)


class _BernoulliOfBlocks(torch.autograd.Function):
    """x @ heads.T + (1 - x) @ tails.T, heads and tails (K, D), on the CPU, without ever holding all of 1 - x.

    x is (N, D), or (R, N, D) where it is R matrices in memory.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, heads: Tensor, tails: Tensor) -> Tensor:
        ctx.save_for_backward(value, heads, tails)
        result = value.new_empty(*value.shape[:-1], len(heads))
        for block, out in _blocks(value, result):
            if value.dim() == 2:
                torch.mm(block, heads.mT, out=out).addmm_(_complement(block), tails.mT)
            else:
                torch.bmm(block, heads.mT.expand(len(block), -1, -1), out=out)
                out.baddbmm_(_complement(block), tails.mT.expand(len(block), -1, -1))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        value, heads, tails = ctx.saved_tensors
        of_value = grad @ (heads - tails) if ctx.needs_input_grad[0] else None
        of_heads, of_both = grad.mT @ value, grad.sum(-2)
        if value.dim() > 2:
            of_heads, of_both = of_heads.sum(0), of_both.sum(0)
        return of_value, of_heads, of_both.unsqueeze(-1) - of_heads


def _bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    # Not x l - softplus(l), the difference of large numbers: these are of one sign, and the sum as accurate as they.
    value, logits = _promoted(value, logits)
    heads, tails = logsigmoid(logits), logsigmoid(-logits)
    if len(value) > 1 or value.device.type != "cpu":
        value = value.flatten(1, -2)
        return torch.baddbmm(value @ heads.mT, 1 - value, tails.mT)
    value = value[0]
    if not value.is_contiguous() and value.dim() > 2:
        value = value.flatten(1, -2)
    # A matrix for each of many short sequences would be slow, and the gradients of all not small.
    if value.is_contiguous() or value.shape[-2] < logits.shape[-2]:
        value = value.flatten(0, -2)
    return _BernoulliOfBlocks.apply(value, heads[0], tails[0])


def _poisson(value: Tensor, rate: Tensor) -> Tensor:
    value, rate = _promoted(value.flatten(1, -2), rate)
    rest = -rate.sum(-1).unsqueeze(-2) - (value + 1).lgamma().sum(-1, keepdim=True)
    if not waits(rate):
        return value @ rate.log().mT + rest
    # Nobody looked whether a rate is 0, which makes every value but 0 impossible, or infinite.
    log_rate = torch.where((rate > 0) & (rate < torch.inf), rate, 1).log()
    impossible = value @ (rate == 0).to(value.dtype).mT > 0
    return (value @ log_rate.mT + rest).masked_fill(impossible, -torch.inf)


def _categorical(value: Tensor, logits: Tensor) -> Tensor:
    # A row for each symbol and event entry of each matrix, a column for each of the states: looked up together.
    num_matrices, num_states, num_events, num_symbols = logits.shape
    table = logits.permute(0, 2, 3, 1).reshape(-1, num_states)
    first = num_symbols * torch.arange(num_matrices * num_events, device=value.device)
    rows = value.flatten(1, -2).long() + first.reshape(num_matrices, 1, num_events)
    return table.index_select(0, rows.reshape(-1)).reshape(*rows.shape, num_states).sum(-2)


def _gaussian(
    value: Tensor, loc: Tensor, log_det: Tensor, residuals: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """-|r|^2 / 2 - log_det - D log(2 pi) / 2, with the residuals r of a block of values in memory that is kept.

    Args:
        value: (R, N, D).
        loc: (R, K, D).
        log_det: (R, K).
        residuals: of a matrix's number, values (D, n) and room (K, D, n) for the result.
    """
    num_states, dim = loc.shape[1:]
    constant = -log_det - 0.5 * dim * math.log(2 * math.pi)
    result = value.new_empty(*value.shape[:-1], num_states)
    step = max(1, _Scratch.size // (num_states * dim))
    room = value.new_empty(num_states * dim * min(step, value.shape[1]))
    for r in range(len(value)):
        for block, out in zip(value[r].split(step), result[r].split(step), strict=True):
            here = room[: num_states * dim * len(block)].view(num_states, dim, len(block))
            squares = residuals(r, block.mT.contiguous(), here).square_().sum(1)
            out.copy_((constant[r].unsqueeze(-1) - 0.5 * squares).mT)
    return result


def _normal(value: Tensor, parameter: Tensor) -> Tensor:
    value, parameter = _promoted(value, parameter)
    loc, scale = parameter.unbind(-1)
    inverse = 1 / scale

    def residuals(r: int, block: Tensor, room: Tensor) -> Tensor:
        return torch.sub(block, loc[r].unsqueeze(-1), out=room).mul_(inverse[r].unsqueeze(-1))

    return _gaussian(value.flatten(1, -2), loc, scale.log().sum(-1), residuals).reshape(*value.shape[:-1], -1)


def _multivariate_normal(value: Tensor, parameter: Tensor) -> Tensor:
    value, parameter = _promoted(value, parameter)
    loc, factor = parameter[..., 0], parameter[..., 1:]
    off = value.new_empty(0)

    def residuals(r: int, block: Tensor, room: Tensor) -> Tensor:
        nonlocal off
        # About each mean before the product: they may be far apart, as seen from a narrow state.
        off = torch.sub(block, loc[r].unsqueeze(-1), out=off if off.shape == room.shape else torch.empty_like(room))
        return torch.linalg.solve_triangular(factor[r], off, upper=False, out=room)

    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _gaussian(value.flatten(1, -2), loc, log_det, residuals).reshape(*value.shape[:-1], -1)


def _promoted(value: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(value.dtype, parameter.dtype)
    return value.to(dtype), parameter.to(dtype)


def _finite(parameter: Tensor) -> Tensor:
    return parameter.isfinite().all()


# By the method that computes it: a subclass with a density of its own is another family. Pyro's methods hand over to
# torch's but for special cases.
_BERNOULLI = _Family(_logits, _finite, _are_bits, _bernoulli)
_POISSON = _Family(_rate, lambda rate: _finite(rate.log()), _supports, _poisson)
_CATEGORICAL = _Family(_logits, lambda logits: True, _supports, _categorical)
_NORMAL = _Family(_loc_and_scale, _finite, _supports, _normal, with_gradients=False)
_MULTIVARIATE = _Family(_loc_and_factor, _finite, _supports, _multivariate_normal, with_gradients=False)
_FAMILIES: dict[Any, _Family] = {
    torch.distributions.Normal.log_prob: _NORMAL,
    torch.distributions.MultivariateNormal.log_prob: _MULTIVARIATE,
    torch.distributions.Bernoulli.log_prob: _BERNOULLI,
    torch.distributions.Poisson.log_prob: _POISSON,
    dist.Poisson.log_prob: _POISSON,
    torch.distributions.Categorical.log_prob: _CATEGORICAL,
    dist.Categorical.log_prob: _CATEGORICAL,
}
