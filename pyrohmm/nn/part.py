"""What all parts have in common: a prior, expected statistics and the M-step of EM on tables of parameters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

if TYPE_CHECKING:
    from pyrohmm.nn._conjugate import Conjugate

Statistics = dict[str, Tensor]
"""Sums over steps, in float64, so that those of batches can be added up: name -> (*lead, ...)."""

Events = dict[str, Tensor]
"""What an M-step met: what it was -> (*lead, K) bool, the states that it happened to."""

EMPTY = "no data, its parameters stay as they are"
# In steps. What weighs less is left from rounding errors.
LEAST_WEIGHT = 1e-8
# Numbers in a block of features: what stays in a core's cache.
BLOCK = 2**18


class Part(PyroModule):
    """A module with parameters for K states: the initial law, the transitions or the emissions of a model.

    `pyrohmm.fit_em` maximises a part with `closed_form` by its methods `expected_statistics` and `maximize`, and any
    other by gradients. Sums over steps make a part's statistics, so those of several batches can be added up.

    Tables of parameters may have dims (R, 1, 1) in front, for R models that are fitted side by side; weights then have
    R in front, and so have the statistics. Parameters with `requires_grad` off stay as they are.

    The parameters of a prior are buffers whose names begin with "prior".

    Attributes:
        num_states: K.
        closed_form: whether `expected_statistics` and `maximize` are there.
        side_by_side: whether the tables may have R in front; where not, models are fitted one after another.
    """

    num_states: int
    closed_form: bool = False
    side_by_side: bool = False
    # Other parts of the same model whose parameters its values depend on, without being registered here.
    depends_on: tuple[nn.Module, ...] = ()

    @property
    def has_prior(self) -> bool:
        """Whether the part, or one in it, was given a prior; a class of your own with a `log_prior` always has one."""
        if not type(self).log_prior.__module__.startswith("pyrohmm."):
            return True
        return any(name.rpartition(".")[2].startswith("prior") for name, _ in self.named_buffers())

    @property
    def prior_has_mode(self) -> bool:
        """Whether the density of the prior is bounded: a `Dirichlet` of concentrations below 1 is not.

        >>> import pyro.distributions as dist
        >>> from pyrohmm.nn import Initial
        >>> Initial(2, prior=dist.Dirichlet(torch.full((2,), 0.1))).prior_has_mode
        False
        """
        return True

    def conjugate_prior(self) -> "Conjugate":
        """The prior as a law that is conjugate to the part, for `pyrohmm.fit_vb`.

        Raises:
            TypeError: a part of this kind has none.
            ValueError: the part was given no prior, and needs one.
        """
        raise TypeError(f"{type(self).__name__}: expected a part with a conjugate prior, got one that has none")

    def put(self, values: dict[str, Tensor]) -> None:
        """Set the parameters to values of its `conjugate_prior`, as that law's methods return them."""
        for name, value in self.tables(values).items():
            assign(getattr(self, name), value)

    def tables(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that such values stand for, with their gradients: name -> value."""
        return values

    @contextmanager
    def given(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Inside, such values, with their gradients, stand in place of the parameters; (R, 1, 1) may be in front.

        >>> from pyrohmm.nn import Initial
        >>> part, logits = Initial(2), torch.zeros(2)
        >>> with part.given({"logits": logits}):
        ...     part() is logits
        True
        """
        own = dict(self._parameters)
        # Not by setattr, which would not take tensors for parameters.
        self._parameters.update(self.tables(values))  # pyright: ignore[reportCallIssue, reportArgumentType]
        try:
            yield
        finally:
            self._parameters.update(own)

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the part's `prior`, up to a constant; 0 without one.

        Densities are those of the constrained parameters (probabilities, rates, variances), so that the maximum does
        not depend on how the part stores them.

        Returns:
            (), or (R,) for tables of R models.

        >>> from pyrohmm.nn import Initial
        >>> import pyro.distributions as dist
        >>> Initial(2).log_prior().item(), Initial(2, prior=dist.Dirichlet(2 * torch.ones(2))).log_prior().item() < 0
        (0.0, True)
        """
        return next(self.parameters(), torch.zeros(())).new_zeros(())


def add_up(total: Statistics, more: Statistics) -> None:
    """Add statistics to others, in place; to none at first."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value


def table(parameter: Tensor, dims: int) -> Tensor:
    """A table with its own `dims` dims last: (R, 1, 1, ...) becomes (R, ...), one without a lead stays as it is."""
    return parameter if parameter.dim() <= dims else parameter.flatten(0, -dims - 1)


def assign(parameter: Tensor, value: Tensor) -> None:
    """Put a new table, in the form that `table` gives, into a parameter, unless it is frozen."""
    if parameter.requires_grad:
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))


def blocks(num_steps: int, width: int) -> list[slice]:
    """Slices of the steps, at least one, for sums of what has `width` numbers a step."""
    steps = max(1, BLOCK // width)
    return [slice(start, start + steps) for start in range(0, max(num_steps, 1), steps)]


def weighted_sums(weights: Tensor, features: Callable[[slice], Tensor], width: int) -> Tensor:
    """sum_m weights_mk features_mf in float64, for blocks of steps in turn, so that all features never exist at once.

    Args:
        weights: (*lead, M, K).
        features: of a slice of the steps, (steps, F) float64.
        width: about F, for the size of the blocks.

    Returns:
        (*lead, K, F).
    """
    total: Tensor | None = None
    for rows in blocks(weights.shape[-2], max(width, weights.shape[-1])):
        part = weights[..., rows, :].double().mT @ features(rows)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
