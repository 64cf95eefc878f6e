"""What the parts share: argument checks, random starts, and the choice of a row by state."""

import copy
import math
from typing import Any

import pyro
import torch
from pyro.ops.indexing import vindex
from torch import Generator, Tensor, nn


def count(name: str, value: int, least: int = 1) -> int:
    """`value` if it is an int of at least `least`; TypeError or ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def allowed(mask: Any, shape: tuple[int, ...]) -> Tensor | None:
    """`mask` as a bool tensor of `shape` in which every row allows something; None stays None."""
    if mask is None:
        return None
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool (True: allowed), got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {shape}, got {tuple(mask.shape)}")
    empty = (~mask.any(-1)).reshape(-1).nonzero().reshape(-1).tolist()
    if empty:
        raise ValueError(f"mask: expected an allowed entry in every row, got none in row(s) {empty}")
    return mask.clone()


def forbid(logits: Tensor, mask: Tensor | None) -> Tensor:
    """`logits` with -inf where `mask` is False; no gradient passes there."""
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def unforbid(logits: Tensor, mask: Tensor | None) -> Tensor:
    """`logits` with 0 where `mask` is False: what a parameter holds there is never read, but must be finite."""
    return logits if mask is None else logits.masked_fill(~mask, 0.0)


def context_inputs(inputs: Tensor | None, context: int) -> Tensor:
    """`inputs` if it is a tensor (..., context); ValueError otherwise."""
    got = None if inputs is None else tuple(inputs.shape)
    if inputs is None or not got or got[-1] != context:
        raise ValueError(f"inputs: expected shape (..., {context}) since context={context}, got {got}")
    return inputs


def previous_values(previous: Tensor | None, order: int, width: int) -> Tensor:
    """`previous` if it is a tensor (..., width); ValueError otherwise."""
    got = None if previous is None else tuple(previous.shape)
    if previous is None or not got or got[-1] != width:
        raise ValueError(f"previous: expected shape (..., {width}), the last {order} observations, got {got}")
    return previous


def join(features: list[Tensor]) -> Tensor:
    """The features beside each other in the last dim, the other dims broadcast."""
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in features))
    return torch.cat([part.expand(*batch, -1) for part in features], dim=-1)


def start(name: str, value: Any, shape: tuple[int, ...], lower: float = -math.inf, upper: float = math.inf) -> Tensor:
    """`value` broadcast to `shape`, every entry strictly between `lower` and `upper`; ValueError otherwise."""
    value = torch.as_tensor(value, dtype=torch.get_default_dtype(), device=torch.get_default_device()).detach()
    try:
        wide = value.expand(shape)
    except RuntimeError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, got {tuple(value.shape)}") from None
    if not ((wide > lower) & (wide < upper)).all():
        raise ValueError(f"{name}: expected entries strictly between {lower} and {upper}, got {value}")
    return wide.clone()


def jitter(value: Any, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Standard normal noise of `shape`, or zeros where the start `value` already says something of each state."""
    if value is not None and torch.as_tensor(value).shape == shape:
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator)


def mlp(in_features: int, hidden: int, out_features: int, generator: Generator | None) -> nn.Sequential:
    """A network with one hidden tanh layer, started as `nn.Linear` starts but from `generator`."""

    def linear(fan_in: int, fan_out: int) -> nn.Module:
        # Without skip_init the constructor would draw from the global generator, even if another one is given.
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=torch.get_default_device())
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        return layer

    return nn.Sequential(linear(in_features, hidden), nn.Tanh(), linear(hidden, out_features))


def network(
    net: nn.Module | None, in_features: int, hidden: int, out_features: int, generator: Generator | None
) -> nn.Module:
    """`net`, checked to map (..., in_features) to (..., out_features), or an `mlp` of these sizes if it is None."""
    if net is None:
        return mlp(in_features, count("hidden", hidden), out_features, generator)
    shape = tuple(dry_run(net, 1, in_features).shape)
    if shape != (1, out_features):
        raise ValueError(f"net: expected output (..., {out_features}) for input (..., {in_features}), got {shape}")
    return net


def dry_run(net: nn.Module, rows: int, in_features: int) -> Tensor:
    """`net` of zeros (rows, in_features) in eval mode, with nothing changed by it."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    parameter = next(net.parameters(), torch.empty(()))
    features = torch.zeros(rows, in_features, dtype=parameter.dtype, device=parameter.device)
    # A PyroModule that has run cannot become a part of another one, and its sites would reach the parameter store.
    trial = copy.deepcopy(net).eval()
    devices = [parameter.device] if parameter.is_cuda else []
    scope = pyro.get_param_store().scope()
    with torch.no_grad(), torch.random.fork_rng(devices), pyro.poutine.block(), scope:
        try:
            return trial(features)
        except RuntimeError as error:
            raise ValueError(f"net: expected to accept input (..., {in_features}), got the error: {error}") from error


def select(table: Tensor, state: Tensor, event_dim: int = 1) -> Tensor:
    """The entries of `table` (*batch, K, *event) at `state`, shape (*broadcast(state.shape, batch), *event)."""
    if state.dtype != torch.int64:
        raise TypeError(f"state: expected int64, got {state.dtype}")
    dim = table.dim() - 1 - event_dim
    lead = state.dim() - dim
    if lead >= 0 and all(size == 1 for size in state.shape[lead:]):
        # No batch, or an enumerated state: whole slices are taken, ten times faster than a gather in both directions.
        rows = table.index_select(dim, state.reshape(-1)).movedim(dim, 0)
        return rows.reshape(state.shape[:lead] + rows.shape[1:])
    return vindex(table, (Ellipsis, state) + (slice(None),) * event_dim)
