"""Emissions whose parameters are the output of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrohmm.nn._common import context_inputs, count, dry_run, join, previous_values, select
from pyrohmm.nn._free import num_trainable
from pyrohmm.nn._prior import normal_log_prob_of, normal_prior
from pyrohmm.nn._relabel import Ordered, as_permutation
from pyrohmm.nn.emission.entries import independent
from pyrohmm.nn.part import Part

Family = str | Callable[[Tensor], TorchDistributionMixin]


class _NetworkEmission(Ordered, Part):
    """The network, its features and its family. `memory` is the size of the previous observations as features."""

    prior: Tensor | None

    def __init__(
        self, num_states: int, net: nn.Module, family: Family, context: int, order: int, memory: int, prior: Any
    ):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.context = count("context", context, least=0)
        self.order = order
        self.family = family
        params = dry_run(net, num_states, num_states + context + memory)
        law = self._law(params)
        if not isinstance(law, TorchDistributionMixin):
            raise TypeError(f"family: expected a function that returns a Pyro distribution, got {type(law).__name__}")
        if law.batch_shape != (num_states,):
            raise ValueError(
                f"family: expected batch shape {(num_states,)} from parameters {tuple(params.shape)}, "
                f"got {tuple(law.batch_shape)}; a vector observation needs .to_event(1)"
            )
        self.event_shape = law.event_shape
        self.num_params = params.shape[-1]
        self.net = net
        self.register_buffer("prior", normal_prior(prior, ()))

    def log_prior(self) -> Tensor:
        """The log-density of the network's parameters under the prior, up to a constant, (); see `Part`."""
        return super().log_prior() if self.prior is None else normal_log_prob_of(self, self.prior)

    def _law(self, params: Tensor, observed: Tensor | None = None) -> TorchDistributionMixin:
        match self.family:
            case "bernoulli":
                return independent(dist.Bernoulli(logits=params), observed)
            case "categorical":
                law = dist.Categorical(logits=params)
                return law if observed is None else law.mask(observed)
            case "gaussian":
                if params.shape[-1] % 2:
                    raise ValueError(
                        f"net: expected 2 D outputs (means, log scales) for family 'gaussian', got {params.shape[-1]}"
                    )
                loc, log_scale = params.chunk(2, dim=-1)
                return independent(dist.Normal(loc, log_scale.exp()), observed)
            case "poisson":
                return independent(dist.Poisson(params.exp()), observed)
            case family if callable(family):
                if observed is not None:
                    raise ValueError(
                        "observed: expected None, since family is a function: the law of some entries of its "
                        "distribution is not known; missing entries need a family by name"
                    )
                return family(params)
            case _:
                raise ValueError(
                    "family: expected 'bernoulli', 'categorical', 'gaussian', 'poisson' or a function, "
                    f"got {self.family!r}"
                )

    def _params(self, state: Tensor, known: list[Tensor]) -> Tensor:
        """The output of the network for the one-hot state beside the `known` features, broadcast."""
        net, state = self.net, self._in_network_order(state)
        dtype = next(net.parameters(), torch.empty(())).dtype
        one_hot = torch.eye(self.num_states, dtype=dtype, device=state.device)
        known = [features.to(dtype) for features in known]
        split = _linear_first(net) if known else None
        if split is None:
            return net(join([select(one_hot, state), *known]))
        # W [one-hot; known] = W_state one-hot + W_known known. The two products apart, the known features are not
        # copied and multiplied K times for an enumerated state; a training step takes two thirds of the time.
        first, rest = split
        state_weight = first.weight[:, : self.num_states]
        known_weight = first.weight[:, self.num_states :]
        hidden = select(state_weight.mT, state) + nn.functional.linear(join(known), known_weight, first.bias)
        for layer in rest:
            hidden = layer(hidden)
        return hidden

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order: the new state i is the old state permutation[i].

        The weights of the network stay as they are; the part keeps the order in which it is asked, as a buffer.

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation.

        >>> emission = NeuralEmission(3, torch.nn.Linear(3, 5), family="categorical")
        >>> before = emission(torch.arange(3)).logits
        >>> emission.relabel([2, 0, 1])
        >>> torch.equal(emission(torch.arange(3)).logits, before[[2, 0, 1]])
        True
        """
        self._reorder(as_permutation(permutation, self.num_states))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers of the network."""
        return num_trainable(self)


class NeuralEmission(_NetworkEmission):
    """The law of an observation from any network of the state and the inputs: p(x | z, c) = family(net([z; c])).

    Args:
        num_states: K.
        net: any module from (..., K + C), the one-hot state and then the inputs, to the parameters of `family`.
        family: by name, with the outputs of `net` it needs: "bernoulli" (D logits), "categorical" (V logits, one
            symbol), "gaussian" (2 D: means, then log scales), "poisson" (D log rates); or a function from these
            outputs (..., P) to a Pyro distribution of batch shape (...).
        context: C, the size of the inputs; 0 for none.
        prior: `Normal` of numbers, e.g. `Normal(0.0, 1.0)`, on every parameter of the network (weight decay).

    Attributes:
        num_states, event_shape, order: K; () for "categorical", (D,) for the other names, else that of the function's
            distribution; 0. The event shape is found by one run of `net` in eval mode.

    Raises:
        TypeError, ValueError: a size that is no int in range, a `net` that takes other features or whose output does
            not fit `family`, another `family`, a `prior` that does not fit.

    A `net` that is an `nn.Sequential` and starts with `nn.Linear` runs faster, to the same result: the state and the
    other features then pass through that layer apart.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4 + 2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 88))
    >>> emission = NeuralEmission(4, net, family="bernoulli", context=2)
    >>> law = emission(torch.arange(4).reshape(4, 1, 1), torch.zeros(5, 7, 2))
    >>> law.batch_shape, law.event_shape
    (torch.Size([4, 5, 7]), torch.Size([88]))
    """

    def __init__(
        self,
        num_states: int,
        net: nn.Module,
        family: Family = "bernoulli",
        *,
        context: int = 0,
        prior: Any = None,
    ):
        super().__init__(num_states, net, family, context, order=0, memory=0, prior=prior)

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
            inputs: (..., C); read only if the part was built with `context`.
            previous: not read; there so that any emission can stand in for any other.
            observed: bool (..., *event_shape), False at entries that are missing: the law is that of the others. Not
                for a `family` that is a function.

        Returns:
            A distribution with batch shape broadcast(state.shape, inputs.shape[:-1]) and event shape `event_shape`.

        Raises:
            TypeError: `state` is not int64.
            ValueError: `inputs` missing or of another size than `context`, or `observed` with a function as family.

        >>> emission = NeuralEmission(3, torch.nn.Linear(3, 5), family="categorical")
        >>> emission(torch.arange(3)).log_prob(torch.tensor(4)).shape
        torch.Size([3])
        """
        known = [context_inputs(inputs, self.context)] if self.context else []
        return self._law(self._params(state, known), observed)


class AutoregressiveEmission(_NetworkEmission):
    """As `NeuralEmission`, with a network that also sees the last observations.

    p(x_t | z_t, c_t, x_{t-1}, ..., x_{t-order}) = family(net([z_t; c_t; x_{t-1}; ...; x_{t-order}])).

    Args:
        num_states: K.
        net: any module from (..., K + C + order * D), the one-hot state, the inputs and the last observations, newest
            first, to the parameters of `family`.
        family: as in `NeuralEmission`. With "categorical" a previous symbol enters as its one-hot vector, D = V.
        dim: D, the size of an observation as features: the number of its entries, or V with "categorical".
        order: the number of last observations seen.
        context: C, the size of the inputs; 0 for none.
        prior: `Normal` of numbers, e.g. `Normal(0.0, 1.0)`, on every parameter of the network (weight decay).

    Attributes:
        num_states, event_shape, order: as in `NeuralEmission`, and the given order.

    Raises:
        TypeError, ValueError: as in `NeuralEmission`, and an event of `family` that has not the size `dim`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4 + 88, 16), torch.nn.ReLU(), torch.nn.Linear(16, 88))
    >>> emission = AutoregressiveEmission(4, net, family="bernoulli", dim=88)
    >>> law = emission(torch.arange(4).reshape(4, 1, 1), previous=torch.zeros(5, 7, 88))
    >>> law.batch_shape, law.event_shape
    (torch.Size([4, 5, 7]), torch.Size([88]))
    """

    def __init__(
        self,
        num_states: int,
        net: nn.Module,
        family: Family = "bernoulli",
        *,
        dim: int,
        order: int = 1,
        context: int = 0,
        prior: Any = None,
    ):
        memory = count("order", order) * count("dim", dim)
        super().__init__(num_states, net, family, context, order, memory, prior)
        self.dim = dim
        size = self.num_params if family == "categorical" else self.event_shape.numel()
        if size != dim:
            raise ValueError(f"dim: expected {size}, the size of an observation by net and family, got {dim}")

    def forward(
        self,
        state: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> TorchDistributionMixin:
        """The law of an observation in `state` after the `previous` ones.

        Args:
            state: int64 of any shape, e.g. (K, 1, 1) if enumerated.
            inputs: (..., C); read only if the part was built with `context`.
            previous: (..., order * D), the last observations, flattened, newest first. With "categorical" symbols
                (..., order), newest first; -1 for none (before the start) enters as the zero vector.
            observed: bool (..., *event_shape), False at entries that are missing: the law is that of the others. Not
                for a `family` that is a function.

        Returns:
            A distribution with batch shape broadcast(state.shape, inputs.shape[:-1], previous.shape[:-1]) and event
            shape `event_shape`.

        Raises:
            TypeError: `state` is not int64.
            ValueError: `inputs` or `previous` missing or of another size, or `observed` with a function as family.

        >>> net = torch.nn.Linear(3 + 2 * 5, 5)
        >>> emission = AutoregressiveEmission(3, net, family="categorical", dim=5, order=2)
        >>> emission(torch.arange(3).reshape(3, 1), previous=torch.tensor([[4, 0], [1, -1]])).batch_shape
        torch.Size([3, 2])
        """
        symbols = self.family == "categorical"
        width = self.order if symbols else self.order * self.dim
        previous = previous_values(previous, self.order, width)
        if symbols:
            # Not one_hot: it has no vector for "none" and reads every value back from the device to check it.
            previous = (previous.unsqueeze(-1) == torch.arange(self.dim, device=previous.device)).flatten(-2)
        known = [context_inputs(inputs, self.context)] if self.context else []
        return self._law(self._params(state, [*known, previous]), observed)


def _linear_first(net: nn.Module) -> tuple[nn.Linear, list[nn.Module]] | None:
    """The first layer and the others if `net` is plainly their chain and the first plainly linear, else None.

    Exact types, since a subclass may compute anything; no hooks on either, since they would not be called.
    """
    if type(net) is not nn.Sequential or len(net) == 0:
        return None
    first, *rest = net
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in (net, first)
    )
    return None if hooked or type(first) is not nn.Linear else (first, rest)
