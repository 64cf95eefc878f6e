"""Draws of parameters from a posterior in which states have no names."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.infer.common import check_counts
from pyrohmm.models import match_states

# Each brings draws and their mean nearer to each other, so the rounds end; few are ever needed.
_MOST_ROUNDS = 100


class AlignedDraws(NamedTuple):
    """Draws in one order of the states.

    Attributes:
        draws: as they were given, with their states in the new order.
        permutations: (*sample_shape, K) int64: state k of a draw was its state permutations[..., k].
    """

    draws: dict[str, Tensor]
    permutations: Tensor


def align_draws(
    draws: Mapping[str, Tensor],
    state_dims: Mapping[str, int | Sequence[int]],
    by: str | Sequence[str] | Tensor,
    *,
    reference: Mapping[str, Tensor] | Tensor | None = None,
    sample_dims: int = 1,
) -> AlignedDraws:
    r"""Put the states of each draw into the order that agrees best with the other draws.

    A posterior is the same in every order of the states, so that chains, and draws of one chain, may differ in it, and
    means and R-hat of single states say nothing. With features :math:`f_{sk}` of state k in draw s, the orders
    :math:`\pi_s` are those that make

    .. math:: \sum_s \sum_k \lVert f_{s, \pi_s(k)} - r_k \rVert^2

    small: by turns with r, the mean of the draws in their order, from the first draw on; or at once, if r is given.

    Args:
        draws: site -> values (*sample_shape, ...), e.g. of `MCMC.get_samples`.
        state_dims: site -> which of its dims are states, counted from the end: {"initial": -1, "transition": (-2, -1),
            "loc": -2}. Sites that are left out have none, and stay as they are.
        by: the features: one site or several, each with one dim of states, in units of their standard deviation over
            draws and states; or a tensor (*sample_shape, ..., K), e.g. the state marginals of the data in each draw,
            (S, N, T, K).
        reference: r, as one draw of the sites of `by`, or as one entry of the tensor `by`. Default: found.
        sample_dims: how many dims in front count draws; 2 for those grouped by chain.

    Returns:
        `AlignedDraws`.

    Raises:
        ValueError: a site without values, dims that do not fit, or features that are not finite.

    Reference:
        Stephens (2000), "Dealing with label switching in mixture models", which has the scheme; Marin, Mengersen and
        Robert (2005), "Bayesian modelling and inference on mixtures of distributions", for a given reference.

    Example:
        >>> draws = {"loc": torch.tensor([[-1.0, 1.0], [1.1, -0.9]]), "initial": torch.tensor([[0.2, 0.8], [0.7, 0.3]])}
        >>> aligned = align_draws(draws, {"loc": -1, "initial": -1}, by="loc")
        >>> aligned.draws["initial"]
        tensor([[0.2000, 0.8000],
                [0.3000, 0.7000]])
    """
    check_counts(sample_dims=sample_dims)
    dims = {
        name: _state_dims(name, draws, value if isinstance(value, Sequence) else (value,), sample_dims)
        for name, value in state_dims.items()
    }
    if isinstance(by, Tensor):
        if by.dim() <= sample_dims:
            raise ValueError(f"by: expected shape (*sample_shape, ..., K), got {tuple(by.shape)}")
        features = by.movedim(-1, sample_dims).flatten(sample_dims + 1) if by.dim() > sample_dims + 1 else by[..., None]
        given = None if reference is None else _as_tensor(reference).movedim(-1, 0).reshape(by.shape[-1], -1)
    else:
        names = [by] if isinstance(by, str) else list(by)
        for name in names:
            if len(dims.get(name, ())) != 1:
                raise ValueError(f"by: expected sites with one dim of states in state_dims, got {name!r}")
        features, given = _features(draws, dims, names, reference, sample_dims)
    sample_shape, num_states = features.shape[:sample_dims], features.shape[sample_dims]
    for name, own in dims.items():
        sizes = [draws[name].shape[dim] for dim in own]
        if draws[name].shape[:sample_dims] != sample_shape or any(size != num_states for size in sizes):
            raise ValueError(
                f"draws: expected {tuple(sample_shape)} draws and {num_states} states of {name!r}, "
                f"got shape {tuple(draws[name].shape)}"
            )
    features = features.detach().double().flatten(0, sample_dims - 1)
    if given is not None and given.shape != features.shape[1:]:
        raise ValueError(f"reference: expected the shape of one draw of by, got {tuple(given.shape)} as (K, features)")
    if not features.isfinite().all():
        raise ValueError("by: expected finite features, got others")
    order = _orders(features, None if given is None else given.detach().double())
    permutations = order.to(features.device).unflatten(0, sample_shape)
    aligned = {name: _reorder(value, permutations, dims.get(name, ())) for name, value in draws.items()}
    return AlignedDraws(aligned, permutations)


def _orders(features: Tensor, reference: Tensor | None) -> Tensor:
    """The order of the states of each draw, (S, K), from features (S, K, F)."""
    rounds = _MOST_ROUNDS if reference is None else 1
    centre = features[0] if reference is None else reference
    order = torch.zeros(features.shape[:2], dtype=torch.int64)
    for _ in range(rounds):
        # Norms do not depend on the order: the nearest is the one of the largest inner product.
        new = torch.stack([match_states(one) for one in features @ centre.mT])
        if torch.equal(new, order):
            break
        order = new
        index = order.to(features.device).unsqueeze(-1).expand(features.shape)
        centre = features.gather(1, index).mean(0)
    return order


def _features(
    draws: Mapping[str, Tensor],
    dims: Mapping[str, tuple[int, ...]],
    names: Sequence[str],
    reference: Mapping[str, Tensor] | Tensor | None,
    sample_dims: int,
) -> tuple[Tensor, Tensor | None]:
    """Those of sites, (*sample_shape, K, F), and of the reference, (K, F)."""
    found, given = [], []
    for name in names:
        value = draws[name].movedim(dims[name][0], sample_dims)
        value = value.reshape(*value.shape[: sample_dims + 1], -1)
        spread = value.flatten(0, sample_dims).std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        found.append(value / spread)
        if reference is not None:
            if not isinstance(reference, Mapping) or name not in reference:
                raise ValueError(f"reference: expected a value of {name!r}, got none")
            one = reference[name].movedim(dims[name][0], 0)
            given.append(one.reshape(len(one), -1) / spread)
    return torch.cat(found, -1), torch.cat(given, -1) if given else None


def _as_tensor(reference: Mapping[str, Tensor] | Tensor) -> Tensor:
    if not isinstance(reference, Tensor):
        raise ValueError(f"reference: expected a tensor, as by is one, got {type(reference).__name__}")
    return reference


def _state_dims(name: str, draws: Mapping[str, Tensor], dims: Sequence[int], sample_dims: int) -> tuple[int, ...]:
    """The dims of a site that are states, if they are among its own."""
    if name not in draws:
        raise ValueError(f"state_dims: expected sites that were drawn, got {name!r}")
    if not all(isinstance(dim, int) and sample_dims - draws[name].dim() <= dim < 0 for dim in dims):
        raise ValueError(
            f"state_dims: expected negative dims right of {sample_dims} of draws for {name!r}, "
            f"of shape {tuple(draws[name].shape)}, got {tuple(dims)}"
        )
    return tuple(dims)


def _reorder(value: Tensor, permutations: Tensor, dims: Sequence[int]) -> Tensor:
    """Entry k along each of the dims is then the old permutations[..., k]."""
    for dim in dims:
        shape = list(permutations.shape[:-1]) + [1] * (value.dim() - permutations.dim() + 1)
        shape[dim] = permutations.shape[-1]
        value = value.gather(dim, permutations.reshape(shape).expand(value.shape))
    return value
