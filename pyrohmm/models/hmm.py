"""The hidden Markov model as a Pyro program, built from parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.nn import Initial, Transition
from pyrohmm.program import markov, posterior, previous
from pyrohmm.program.posterior import trace_given


@dataclass(frozen=True)
class Blank:
    """What a program needs of `Sequences` that are yet to be simulated: all but the observations."""

    num_total: int
    num_steps: int
    index: Tensor
    lengths: Tensor | None
    inputs: Tensor | None
    x: None = None
    mask: None = None
    labels: None = None


class HMM(PyroModule):
    r"""A hidden Markov model of many sequences, with the states summed out exactly.

    .. math::
        p(x) = \sum_{z_{1:T}} p(z_1 \mid c_1) \prod_{t>1} p(z_t \mid z_{t-1}, c_t) \prod_t p(x_t \mid z_t, c_t, x_{<t})

    with inputs c, if the parts read any, and earlier observations, if the emission is autoregressive (order > 0).
    Before the start these are 0, symbols -1; a missing one is 0.

    The model is a Pyro program: call it, or `.model`, on `Sequences`, with any inference algorithm of Pyro. Its sites
    are the plate "sequences" (with the scale of a minibatch) and the collapsed factor "time" of the loop over the
    sites "z" and "x". Parameters that were replaced by `pyro.nn.PyroSample` priors are sampled once, at the start.

    Args:
        emission: a part like those of `pyrohmm.nn`, with the attributes num_states, event_shape and order.
        initial: the law of the first state. Default: `pyrohmm.nn.Initial(K)`.
        transition: the law of the next state. Default: `pyrohmm.nn.Transition(K)`.
        guide: a Pyro program of the data that samples the model's latent sites, if it has any. Default: empty.
        use_labels: whether states are known where the data has labels (semi-supervised): every other state is then
            impossible there, and `log_prob` is that of observations and labels together.
        generator: source of the random start of the default parts; torch's global one if None.

    Raises:
        TypeError: a part is no module, or `guide` is not callable.
        ValueError: the parts differ in their number of states.

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
        >>> data = Sequences.from_list([[0, 0, 2, 2], [2, 0]])
        >>> model.log_prob(data).shape, model.posterior(data).viterbi().states
        (torch.Size([2]), tensor([[ 0,  0,  1,  1], [ 1,  0, -1, -1]]))
        >>> model.num_states, model.num_parameters
        (2, 12)
    """

    # Any: what is asked of a part, beyond being a module, is in its documented attributes.
    initial: Any
    transition: Any
    emission: Any

    def __init__(
        self,
        emission: nn.Module,
        initial: nn.Module | None = None,
        transition: nn.Module | None = None,
        *,
        guide: Callable[..., Any] | None = None,
        use_labels: bool = False,
        generator: Generator | None = None,
    ):
        super().__init__()
        num_states = _num_states("emission", emission)
        self.initial = Initial(num_states, generator=generator) if initial is None else initial
        self.transition = Transition(num_states, generator=generator) if transition is None else transition
        self.emission = emission
        for name in ("initial", "transition"):
            got = _num_states(name, getattr(self, name))
            if got != num_states:
                raise ValueError(f"{name}: expected {num_states} states, like the emission, got {got}")
        if guide is not None and not callable(guide):
            raise TypeError(f"guide: expected a callable, got {type(guide).__name__}")
        self.given_guide = guide
        self.use_labels = use_labels

    def forward(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program.

        Args:
            data: N sequences. Without observations (x None) the program simulates them, as sites "z" and "x".
            vectorized: False for the plain sequential program, with sites z_0, x_0, ..., for `TraceEnum_ELBO`.

        Raises:
            ValueError: x does not have the emission's event shape, or (where Pyro's validation is on) a label, if
                used, is no state.
        """
        self._check(data)
        self._sample_priors()
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            state = None
            for t in markov("time", data.num_steps, dim=-1, lengths=data.lengths, vectorized=vectorized):
                inputs = None if data.inputs is None else data.inputs[:, t]
                # No variable for the logits: the loop would take what it holds for a dependence on older states.
                state = pyro.sample("z", self._next_state(state, inputs))
                if self.use_labels and data.labels is not None:
                    label = data.labels[:, t]
                    pyro.factor("label", torch.where((label < 0) | (label == state), 0.0, -torch.inf))
                x = None if data.x is None else data.x[:, t]
                observed: Any = True if data.mask is None else data.mask[:, t]
                with poutine.mask(mask=observed):
                    pyro.sample("x", self.emission(state, inputs, self._previous(data, t)), obs=x)

    def model(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program, the same as calling the model; arguments as for `forward`."""
        self(data, vectorized=vectorized)

    def guide(self, data: Sequences | Blank) -> Any:
        """The given guide; without one nothing is sampled, as the model has no latent site but its states."""
        return None if self.given_guide is None else self.given_guide(data)

    @property
    def num_states(self) -> int:
        """K."""
        return self.emission.num_states

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers in the three parts.

        A table of logits counts in full, though K logits are K - 1 probabilities.
        """
        parts = nn.ModuleList([self.initial, self.transition, self.emission])
        return sum(parameter.numel() for parameter in parts.parameters() if parameter.requires_grad)

    def log_prob(self, data: Sequences, guide: Callable[..., Any] | None = None) -> Tensor:
        """The log-likelihood of each sequence, exact, in nats, differentiable in the parameters.

        Latent sites outside of the loop, if any, are drawn once from the guide.

        Args:
            data: N sequences.
            guide: the guide that was fitted to the model's latent sites. Default: the model's own.

        Returns:
            (N,); -inf for a sequence that is impossible.

        Raises:
            ValueError: as in `forward`, or a latent site outside of the loop that the guide does not sample.

        Example:
            >>> from pyrohmm.nn import BernoulliEmission
            >>> model = HMM(BernoulliEmission(2, 3, probs=0.5, noise=0.0))
            >>> model.log_prob(Sequences(torch.ones(2, 4, 3), torch.tensor([4, 1])))
            tensor([-8.3178, -2.0794], grad_fn=<...>)
        """
        with self._with_guide(guide) as guide:
            # The factor of the loop, before the scale of a minibatch.
            factor: Any = trace_given(self.model, guide, data).nodes["time"]["fn"]
            return factor.log_factor.reshape(len(data))

    def posterior(self, data: Sequences, guide: Callable[..., Any] | None = None) -> MarkovChain:
        """The law of the state paths given the sequences, of batch shape (N,).

        Latent sites outside of the loop, if any, are drawn once from the guide.

        Args:
            data: N sequences.
            guide: the guide that was fitted to the model's latent sites. Default: the model's own.

        Raises:
            ValueError: as in `forward`, or a latent site outside of the loop that the guide does not sample.

        Example:
            >>> from pyrohmm.nn import BernoulliEmission
            >>> chain = HMM(BernoulliEmission(2, 3)).posterior(Sequences(torch.ones(5, 4, 3)))
            >>> chain.batch_shape, chain.marginals.shape
            (torch.Size([5]), torch.Size([5, 4, 2]))
        """
        with self._with_guide(guide) as guide:
            return posterior(self.model, guide)(data)["time"]

    def simulate(
        self,
        num_sequences: int,
        num_steps: int,
        *,
        lengths: Tensor | None = None,
        inputs: Tensor | None = None,
        seed: int | None = None,
        guide: Callable[..., Any] | None = None,
    ) -> Sequences:
        """Draw sequences, with their states as labels.

        Latent sites outside of the loop, if any, are drawn once from the guide, or else from their prior.

        Args:
            num_sequences: N.
            num_steps: T.
            lengths: (N,), int64, steps of each sequence; all T if None.
            inputs: (N, T, C), for parts that read inputs.
            seed: of the random numbers, without any effect on torch's global ones. They are used if it is None.
            guide: the guide that was fitted to the model's latent sites. Default: the model's own.

        Returns:
            `Sequences` with x (N, T, *event), labels (N, T) and the given inputs.

        Raises:
            TypeError, ValueError: a size that is no positive int, or a tensor that does not fit.

        Example:
            >>> from pyrohmm.nn import PoissonEmission
            >>> HMM(PoissonEmission(2, 3)).simulate(5, 4, lengths=torch.tensor([4, 4, 1, 2, 3]), seed=0)
            Sequences(5 sequences of 1 to 4 steps, event_shape=(3,), float32, labels)
        """
        for name, size in (("num_sequences", num_sequences), ("num_steps", num_steps)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected an int of at least 1, got {size!r}")
        if lengths is not None and lengths.shape != (num_sequences,):
            raise ValueError(f"lengths: expected shape ({num_sequences},), got {tuple(lengths.shape)}")
        if inputs is not None and (inputs.dim() != 3 or inputs.shape[:2] != (num_sequences, num_steps)):
            raise ValueError(f"inputs: expected shape ({num_sequences}, {num_steps}, C), got {tuple(inputs.shape)}")
        device = next(self.parameters(), torch.empty(())).device
        lengths = None if lengths is None else lengths.to(device)
        inputs = None if inputs is None else inputs.to(device)
        blank = Blank(num_sequences, num_steps, torch.arange(num_sequences, device=device), lengths, inputs)
        random = nullcontext() if seed is None else seeded(seed, device)
        with torch.no_grad(), random, self._with_guide(guide) as guide:
            drawn = poutine.trace(guide).get_trace(blank)
            sites: Any = poutine.trace(poutine.replay(self.model, trace=drawn)).get_trace(blank).nodes
        return Sequences(sites["x"]["value"], lengths, inputs=inputs, labels=sites["z"]["value"])

    @contextmanager
    def _with_guide(self, guide: Callable[..., Any] | None) -> Iterator[Callable[..., Any]]:
        """The guide to use, by default the model's own, while it and the model keep their parameters to themselves."""
        guide = self.guide if guide is None else guide
        with own_parameters(self, *([guide] if isinstance(guide, nn.Module) else [])):
            yield guide

    def _next_state(self, state: Tensor | None, inputs: Tensor | None) -> dist.Categorical:
        return dist.Categorical(logits=self.initial(inputs) if state is None else self.transition(state, inputs))

    def _sample_priors(self) -> None:
        """Sample the parameters that have priors here, where they belong to no plate; PyroModule remembers them."""
        for part in (self.initial, self.transition, self.emission):
            for module in part.modules():
                for name in getattr(module, "_pyro_samples", ()):
                    getattr(module, name)

    def _previous(self, data: Sequences | Blank, t: slice) -> Tensor | None:
        """The last observations as an emission of order > 0 wants them, (N, t, order * D), newest first."""
        order, event_shape = self.emission.order, self.emission.event_shape
        if order == 0:
            return None
        symbols = getattr(self.emission, "family", None) == "categorical"
        shape = (len(data.index), 1, *event_shape)
        before = torch.full(shape, -1 if symbols else 0.0, device=data.index.device)
        lags = [previous("x", data.x, t, lag=lag, initial=before) for lag in range(1, order + 1)]
        values = torch.broadcast_tensors(*lags)
        return torch.cat([x.flatten(-len(event_shape)) if event_shape else x.unsqueeze(-1) for x in values], -1)

    def _check(self, data: Sequences | Blank) -> None:
        if not isinstance(data, Sequences | Blank):
            raise TypeError(
                f"data: expected pyrohmm.data.Sequences, got {type(data).__name__}; see Sequences.from_list"
            )
        if data.x is not None and data.x.shape[2:] != self.emission.event_shape:
            raise ValueError(
                f"data: expected x of shape (N, T, *{tuple(self.emission.event_shape)}), like the emission, "
                f"got {tuple(data.x.shape)}"
            )
        # Without validation such a label leaves no state, and the sequence is impossible: to ask is to wait for a GPU.
        if not (self.use_labels and data.labels is not None and is_validation_enabled()):
            return
        if (largest := int(data.labels.max())) >= self.num_states:
            raise ValueError(f"data: expected labels below {self.num_states}, the number of states, got {largest}")


def _num_states(name: str, part: nn.Module) -> int:
    if not isinstance(part, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, like the parts of pyrohmm.nn, got {type(part).__name__}")
    num_states = getattr(part, "num_states", None)
    if not isinstance(num_states, int):
        raise TypeError(f"{name}: expected an int attribute num_states, got {num_states!r}")
    return num_states
