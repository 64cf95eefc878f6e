"""What emissions with a table of parameters, one row for each state, have in common."""

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrohmm.nn._common import count
from pyrohmm.nn._free import num_trainable
from pyrohmm.nn._relabel import as_permutation, permute
from pyrohmm.nn.emission.entries import independent
from pyrohmm.nn.part import BLOCK, EMPTY, LEAST_WEIGHT, Events, Part, Statistics, add_up, assign, table, weighted_sums


class TableEmission(Part):
    """An emission that reads neither the inputs nor the previous observations.

    A subclass has tables of parameters with K rows, says in `_distribution` what the law in a state is, and has the
    methods `expected_statistics` and `maximize`.
    """

    order: int = 0
    closed_form = True
    side_by_side = True
    _shared: tuple[str, ...] = ()  # names of the parameters and buffers that all states share

    def __init__(self, num_states: int, event_shape: tuple[int, ...]):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.event_shape = torch.Size(event_shape)

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
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
            inputs: not read; there so that any emission can stand in for any other.
            previous: not read.
            observed: bool (..., *event_shape), False at entries that are missing: the law is that of the others.

        Returns:
            A distribution with batch shape state.shape (with `observed`, broadcast with its) and event shape
            `event_shape`.

        Raises:
            TypeError: `state` is not int64.

        >>> from pyrohmm.nn import BernoulliEmission
        >>> emission = BernoulliEmission(3, 88)
        >>> emission(torch.arange(3).reshape(3, 1, 1)).log_prob(torch.zeros(5, 7, 88)).shape
        torch.Size([3, 5, 7])
        """
        return self._distribution(state, observed)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Sums over steps of what `maximize` needs, weighted by the posterior probabilities of the states.

        Args:
            x: (M, *event_shape), steps of any sequences.
            weights: (*lead, M, K), not negative; 0 at steps that are not observed.
            inputs: (M, C), for emissions that read inputs.
            previous: as in `forward`, (M, ...), for emissions that read earlier observations.
            observed: bool (M, *event_shape), False at entries that are missing.

        Returns:
            name -> (*lead, ...), float64.
        """
        raise NotImplementedError

    def maximize(self, statistics: Statistics) -> Events:
        """Set the parameters to those of the largest expected log-density plus log prior (the M-step).

        Args:
            statistics: those of `expected_statistics`, possibly summed over batches.

        Returns:
            what it met that the user should know, and in which states.
        """
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Observations (M, *event_shape) as real vectors (M, F) in which near ones are alike, for clustering."""
        return x.reshape(len(x), -1)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation, or a parameter has a `PyroSample` prior.

        >>> from pyrohmm.nn import PoissonEmission
        >>> emission = PoissonEmission(2, 1, rate=[[1.0], [2.0]])
        >>> emission.relabel([1, 0])
        >>> emission(torch.tensor([0, 1])).mean.flatten().tolist()
        [2.0, 1.0]
        """
        own = [*self._parameters, *self._buffers, *self._pyro_params, *self._pyro_samples]
        names = [name for name in own if name not in self._shared and not name.endswith("_unconstrained")]
        permute(self, as_permutation(permutation, self.num_states), names)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers; of the probabilities of V symbols V - 1 for each state.

        >>> from pyrohmm.nn import BernoulliEmission, CategoricalEmission
        >>> BernoulliEmission(2, 3).num_free_parameters, CategoricalEmission(2, 3).num_free_parameters
        (6, 4)
        """
        return num_trainable(self)


class EntriesEmission(TableEmission):
    """D independent entries of one family of distributions of numbers, with tables of parameters (K, D).

    A subclass says what the law of an entry is, which functions of x it has as sufficient statistics, and what the
    best parameters are given their weighted sums. A family with something hidden behind x, given which it would have
    such statistics, says what is expected of them under the present parameters.
    """

    # In the support of the family: put in where an entry is missing.
    filler: float = 0.0
    prior: Tensor | None

    def __init__(self, num_states: int, dim: int):
        super().__init__(num_states, (count("dim", dim),))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        """The law of the entries, batch shape (*state.shape, D)."""
        raise NotImplementedError

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return independent(self._entries(state), observed, self.filler)

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        """Functions of x (M, D), each (M, D)."""
        return {"total": x}

    def _hidden(self, x: Tensor) -> dict[str, Tensor]:
        """Functions of x (M, 1, D) and the present parameters, each (*lead, M, K, D).

        `_best` must not take the parameters for those of the sums: online EM averages over earlier ones too.
        """
        return {}

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        """New tables by name, (*lead, K, D), as `weight` and the sums are."""
        raise NotImplementedError

    def _met(self, tables: dict[str, Tensor], sums: Statistics) -> Events:
        """What the user should know of new tables, (*lead, K, D)."""
        return {}

    def _told(self) -> bool:
        """Whether priors tell all parameters: no data are then as good as some."""
        return self.prior is not None

    def _now(self, name: str) -> Tensor:
        """The present table, (*lead, K, D) float64."""
        return table(getattr(self, name).detach(), 2).double()

    def _unless_frozen(self, name: str, new: Tensor) -> Tensor:
        """The table that will be there after `new` is assigned: what is best for the others may depend on it."""
        return new if getattr(self, name).requires_grad else self._now(name)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """The weight of each entry, and the weighted sums of its sufficient statistics; see `TableEmission`.

        Returns:
            "weight" and the sums, (*lead, K, D).
        """
        names: list[str] = []

        def features(rows: slice) -> Tensor:
            block = x[rows].double()
            seen = None if observed is None else observed[rows]
            values = self._sufficient(block if seen is None else torch.where(seen, block, self.filler))
            names[:] = values
            if seen is None:
                return torch.cat([block.new_ones(len(block), 1), *values.values()], -1)
            return torch.cat([seen.double(), *(torch.where(seen, value, 0.0) for value in values.values())], -1)

        dim = self.event_shape.numel()
        sums = weighted_sums(weights, features, dim)
        weight, *others = sums.split([sums.shape[-1] - dim * len(names), *[dim] * len(names)], -1)
        return {
            "weight": weight.expand(*weight.shape[:-1], dim),
            **dict(zip(names, others, strict=True)),
            **self._expected_hidden(x, weights, observed),
        }

    def _expected_hidden(self, x: Tensor, weights: Tensor, observed: Tensor | None) -> Statistics:
        if type(self)._hidden is EntriesEmission._hidden:
            return {}
        sums: Statistics = {}
        steps = max(1, BLOCK // (weights.shape[:-2].numel() * self.num_states * self.event_shape.numel()))
        for start in range(0, max(len(x), 1), steps):
            rows = slice(start, start + steps)
            block, share = x[rows].double().unsqueeze(-2), weights[..., rows, :].double().unsqueeze(-1)
            if observed is not None:
                seen = observed[rows].unsqueeze(-2)
                block, share = torch.where(seen, block, self.filler), share * seen
            add_up(sums, {name: (share * value).sum(-3) for name, value in self._hidden(block).items()})
        return sums

    def maximize(self, statistics: Statistics) -> Events:
        """Set the parameters to the best ones; see `TableEmission`."""
        weight = statistics["weight"]
        empty = weight <= (-1.0 if self._told() else LEAST_WEIGHT)
        tables = self._best(torch.where(empty, 1.0, weight), statistics)
        for name, new in tables.items():
            assign(getattr(self, name), torch.where(empty, self._now(name), new))
        return {
            EMPTY: empty.any(-1),
            **{what: (here & ~empty).any(-1) for what, here in self._met(tables, statistics).items()},
        }
