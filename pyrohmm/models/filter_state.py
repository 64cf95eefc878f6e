"""Filtering of a stream: one observation at a time, at a cost that does not grow with time."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrohmm import ops
from pyrohmm.distributions import statewise
from pyrohmm.models.isolation import own_parameters
from pyrohmm.models.lags import before_start
from pyrohmm.ops.chain import finite

if TYPE_CHECKING:
    from pyrohmm.models.hmm import HMM

# Entries of a (..., K, K) tensor above which a compiled kernel, which needs none, takes less time than torch.
_LARGE = 50_000


class FilterUpdate(NamedTuple):
    """What one observation tells.

    Attributes:
        log_probs: log p(z_t | x_1..t), (..., K).
        log_evidence: log p(x_t | x_1..t-1), (...), nats; 0 (to rounding) where x_t is missing, -inf where impossible.
        predicted: log p(z_t | x_1..t-1), (..., K), what was known of the state before.
    """

    log_probs: Tensor
    log_evidence: Tensor
    predicted: Tensor


class _Step(NamedTuple):
    """A step in the window that is kept, the transition only where `smooth` may need it: the one into the step."""

    log_probs: Tensor
    observation: Tensor
    transition: Tensor | None


class FilterState:
    r"""What a hidden Markov model knows of its states after the observations so far, to be updated by the next one.

    .. math::
        p(z_t \mid x_{1:t}) = \frac{p(x_t \mid z_t)}{p(x_t \mid x_{<t})}
        \sum_{z_{t-1}} p(z_t \mid z_{t-1})\, p(z_{t-1} \mid x_{<t})

    The numbers are those of `pyrohmm.ops.filter` on all observations at once, and those of `smooth` are those of
    `pyrohmm.ops.smooth` on the observations so far. An update takes O(K^2) time, whatever the time; `smooth` takes
    O(lag K^2). Memory is O(lag K^2). Nothing is differentiable; no Pyro program runs.

    A sequence of the batch that has ended is one whose observations are missing from then on.

    Args:
        model: its parameters are read at every update, and should stay as they are. It is neither copied nor saved.
        batch_shape: how many sequences run side by side, () for one without a batch axis; an int N for (N,).
        lag: L, how many steps `smooth` looks back.

    Attributes:
        num_steps: t, the number of updates so far.
        log_likelihood: log p(x_1..t), (*batch_shape), nats, always float64.

    Raises:
        TypeError, ValueError: a size that is no int in range, or a model with parameters that have priors.

    Reference:
        Rabiner (1989); for fixed-lag smoothing, Moore (1973), "Discrete-time fixed-lag smoothing algorithms".

    Example:
        >>> from pyrohmm.models import HMM
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
        >>> state = FilterState(model, lag=1)
        >>> for x in [0, 0, 2, None]:
        ...     update = state.update(None if x is None else torch.tensor(x))
        >>> update.log_probs.argmax().item(), state.smooth().argmax(-1)
        (1, tensor([1, 1]))
        >>> other = FilterState(model, lag=1)
        >>> other.load_state_dict(state.state_dict())
        >>> other.update(torch.tensor(0)).log_evidence == state.update(torch.tensor(0)).log_evidence
        tensor(True)
    """

    def __init__(self, model: "HMM", batch_shape: int | Sequence[int] = (), *, lag: int = 0):
        sizes = (batch_shape,) if isinstance(batch_shape, int) else tuple(batch_shape)
        for name, size, least in (("lag", lag, 0), *(("batch_shape", size, 1) for size in sizes)):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name}: expected an int, got {type(size).__name__}")
            if size < least:
                raise ValueError(f"{name}: expected at least {least}, got {size}")
        if priors := model._names_of_priors():
            raise ValueError(
                f"model: expected parameters without priors, got pyro.nn.PyroSample for {', '.join(priors)}; filter "
                "with a model that has their values, e.g. a guide's median, as parameters"
            )
        self.model = model
        self.batch_shape = torch.Size(sizes)
        self.lag = lag
        self.num_steps = 0
        parameter = next(model.parameters(), torch.empty(()))
        self.log_likelihood = torch.zeros(self.batch_shape, dtype=torch.float64, device=parameter.device)
        self._window: deque[_Step] = deque(maxlen=lag + 1)
        # Symbols stay symbols, -1 for none; all else enters a network, in the model's precision.
        width = model.emission.order * model.emission.event_shape.numel()
        start = before_start(model.emission)
        dtype = torch.int64 if start < 0 else parameter.dtype
        self._previous = torch.full((*self.batch_shape, width), start, dtype=dtype, device=parameter.device)

    @property
    def log_probs(self) -> Tensor | None:
        """log p(z_t | x_1..t), (*batch_shape, K); None before the first update."""
        return self._window[-1].log_probs if self._window else None

    @torch.no_grad()
    def update(
        self,
        x: Tensor | None = None,
        inputs: Tensor | None = None,
        *,
        observed: bool | Tensor = True,
        labels: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> FilterUpdate:
        """Take in the observations of the next step.

        Args:
            x: (*batch_shape, *event), x_t; None where nothing is observed.
            inputs: (*batch_shape, C), c_t, for parts that read inputs.
            observed: bool, or a bool tensor (*batch_shape) or (*batch_shape, *event): False where x, or an entry of it,
                is missing; it is not read there.
            labels: (*batch_shape), int64, known states, -1 where unknown; read only if the model uses labels.
            allowed: (*batch_shape, K), bool, the states that are possible; all if None.

        Returns:
            `FilterUpdate`. Where what came is impossible, `log_probs` is -inf from then on.

        Raises:
            TypeError, ValueError: an argument of another dtype or shape, inputs missing that a part reads, a label
                that is no state, or (where validation is on) an x that is not finite or not in the emission's support.
                The state is then as before.

        Example:
            >>> from pyrohmm.models import HMM
            >>> from pyrohmm.nn import PoissonEmission
            >>> state = FilterState(HMM(PoissonEmission(3, 2)), 5)
            >>> update = state.update(torch.ones(5, 2), observed=torch.tensor([True, True, False, True, True]))
            >>> update.log_evidence.abs() > 1e-5
            tensor([ True,  True, False,  True,  True])
        """
        x, read, entries = self._checked(x, observed)
        possible = self._possible(labels, allowed)
        inputs = self._to_device("inputs", inputs, 1)
        with own_parameters(self.model):
            predicted, transition = self._predict(self.log_probs, inputs)
            observation = torch.zeros_like(predicted)
            if x is not None:
                observation = self._log_density(x, inputs, read, entries)
        if possible is not None:
            observation = observation.where(possible, -torch.inf)
        joint = predicted + observation
        evidence = joint.logsumexp(-1)
        log_probs = joint - finite(evidence).unsqueeze(-1)
        self._window.append(_Step(log_probs, observation, transition if self.lag else None))
        self._remember(x)
        self.log_likelihood = self.log_likelihood + evidence
        self.num_steps += 1
        return FilterUpdate(log_probs, evidence, predicted)

    @torch.no_grad()
    def smooth(self) -> Tensor:
        """Fixed-lag smoothing: p(z_{t-l} | x_1..t) at [..., l, :], for l = 0, ..., min(L, t - 1).

        Returns:
            (*batch_shape, min(L, t - 1) + 1, K), probabilities; 0 for a sequence that is impossible.

        Raises:
            ValueError: nothing was taken in yet.

        Example:
            >>> from pyrohmm.models import HMM
            >>> from pyrohmm.nn import BernoulliEmission
            >>> state = FilterState(HMM(BernoulliEmission(3, 2)), 5, lag=4)
            >>> for _ in range(3):
            ...     _ = state.update(torch.ones(5, 2))
            >>> state.smooth().shape
            torch.Size([5, 3, 3])
        """
        if not self._window:
            raise ValueError("smooth: expected at least one update before, got none")
        # A chain that begins with what the filter knew at the oldest step of the window.
        oldest, *later = self._window
        start = oldest.log_probs.to(self._window[-1].log_probs.dtype)
        observations = [torch.zeros_like(start), *(step.observation.to(start) for step in later)]
        transitions = [step.transition.to(start) for step in later if step.transition is not None]
        no_transition = start.new_zeros(self.model.num_states, self.model.num_states)
        transition = torch.stack(transitions, -3) if transitions else no_transition
        return ops.smooth(start, transition, torch.stack(observations, -2)).state_marginals.flip(-2)

    @torch.no_grad()
    def forecast(self, steps: int = 1, inputs: Tensor | None = None) -> Tensor:
        """The law of the states to come: log p(z_{t+h} | x_1..t) at [..., h - 1, :], for h = 1, ..., steps.

        Before the first update it is the law of the first states.

        Args:
            steps: how far to look ahead.
            inputs: (*batch_shape, steps, C), the inputs to come, for parts that read inputs.

        Returns:
            (*batch_shape, steps, K).

        Raises:
            ValueError: steps below 1, or inputs of another shape or missing where a part reads them.

        Example:
            >>> from pyrohmm.models import HMM
            >>> from pyrohmm.nn import BernoulliEmission
            >>> FilterState(HMM(BernoulliEmission(3, 2))).forecast(4).shape
            torch.Size([4, 3])
        """
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected an int of at least 1, got {steps!r}")
        inputs = self._to_device("inputs", inputs, 2)
        if inputs is not None and inputs.shape[-2] != steps:
            raise ValueError(f"inputs: expected {steps} steps in dimension -2, got {tuple(inputs.shape)}")
        log_probs, laws = self.log_probs, []
        with own_parameters(self.model):
            for step in range(steps):
                log_probs, _ = self._predict(log_probs, None if inputs is None else inputs[..., step, :])
                laws.append(log_probs)
        return torch.stack(laws, -2)

    def state_dict(self) -> dict[str, Any]:
        """All that is known so far, as plain tensors and numbers; `torch.load(..., weights_only=True)` can read it.

        The parameters are not in it: they are the model's own `state_dict`.

        Example:
            >>> from pyrohmm.models import HMM
            >>> from pyrohmm.nn import BernoulliEmission
            >>> FilterState(HMM(BernoulliEmission(3, 2)), 5).state_dict()["batch_shape"]
            [5]
        """
        return {
            "batch_shape": list(self.batch_shape),
            "num_states": self.model.num_states,
            "lag": self.lag,
            "num_steps": self.num_steps,
            "log_likelihood": self.log_likelihood,
            "previous": self._previous,
            "window": [list(step) for step in self._window],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` told, to the same numbers. The tensors come to the device of this one's.

        Args:
            state: from a filter of the same batch shape, lag and kind of model.

        Raises:
            ValueError: it is from another kind of filter.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"state: expected the keys {list(own)}, got {list(state)}")
        for name in ("batch_shape", "num_states", "lag"):
            if state[name] != own[name]:
                raise ValueError(f"state: expected {name} {own[name]}, got {state[name]}")
        if state["previous"].shape != self._previous.shape:
            raise ValueError(
                f"state: expected previous observations of shape {tuple(self._previous.shape)}, like the model's, "
                f"got {tuple(state['previous'].shape)}"
            )
        device = self.log_likelihood.device
        self.num_steps = state["num_steps"]
        self.log_likelihood = state["log_likelihood"]
        self._previous = state["previous"]
        self._window = deque((_Step(*step) for step in state["window"]), maxlen=self.lag + 1)
        self.to(device)

    def to(self, device: torch.device | str) -> "FilterState":
        """Move what is known so far, in place, and return it. The model moves by its own `to`."""
        self.log_likelihood = self.log_likelihood.to(device)
        self._previous = self._previous.to(device)
        for _ in range(len(self._window)):
            log_probs, observation, transition = self._window.popleft()
            transition = None if transition is None else transition.to(device)
            self._window.append(_Step(log_probs.to(device), observation.to(device), transition))
        return self

    def __repr__(self) -> str:
        return f"FilterState({self.num_steps} steps, batch_shape={tuple(self.batch_shape)}, lag={self.lag})"

    def _predict(self, log_probs: Tensor | None, inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the next state, (*batch_shape, K), and the transition (..., K, K), if there is one."""
        if log_probs is None:
            initial = self.model.initial(inputs).log_softmax(-1)
            return initial.expand(*self.batch_shape, -1), None
        transition = self.model.transition(self._states, inputs).log_softmax(-1).movedim(0, -2)
        num_states = transition.shape[-1]
        if log_probs.numel() * num_states <= _LARGE:
            return (log_probs.unsqueeze(-1) + transition).logsumexp(-2), transition
        steps = log_probs.new_zeros(2, num_states)
        chain = log_probs, transition.unsqueeze(-3).to(log_probs.dtype), steps
        return ops.filter(*chain).log_probs[..., 1, :], transition

    @property
    def _states(self) -> Tensor:
        """All states, to the left of the batch, as an enumeration has them."""
        states = torch.arange(self.model.num_states, device=self.log_likelihood.device)
        return states.reshape(-1, *(1 for _ in self.batch_shape))

    def _log_density(self, x: Tensor, inputs: Tensor | None, read: Tensor | None, entries: Tensor | None) -> Tensor:
        """log p(x_t | z_t, c_t, x_<t), (*batch_shape, K); 0 where x is not to be read."""
        previous = self._previous if self.model.emission.order else None
        law = self.model._emission(self._states, inputs, previous, entries)
        log_prob = statewise.log_prob(law, x, read)
        if read is not None:
            log_prob = log_prob.where(read, 0.0)
        return log_prob.expand(-1, *self.batch_shape).movedim(0, -1)

    def _remember(self, x: Tensor | None) -> None:
        """Put x in front of the last observations; a missing one is 0, as in the model's program."""
        width = self._previous.shape[-1]
        if width == 0:
            return
        shape = *self.batch_shape, self.model.emission.event_shape.numel()
        newest = self._previous.new_zeros(shape) if x is None else x.reshape(shape).to(self._previous.dtype)
        self._previous = torch.cat([newest, self._previous], -1)[..., :width]

    def _checked(self, x: Tensor | None, observed: bool | Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """x, 0 where it is missing, None if all of it is; in which sequences, and which entries, are to be read.

        The last two are None for all, the entries also if they are missing by whole steps.
        """
        shape = self.batch_shape + self.model.emission.event_shape
        if x is None or observed is False:
            return None, None, None
        if not isinstance(x, Tensor) or x.shape != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: expected a tensor of shape {tuple(shape)} (batch, event), got {got}")
        x = x.to(self.log_likelihood.device)
        read = entries = None
        if isinstance(observed, Tensor):
            if observed.dtype != torch.bool or observed.shape not in (self.batch_shape, shape):
                raise ValueError(
                    f"observed: expected bool of shape {tuple(self.batch_shape)}, or {tuple(shape)} for single "
                    f"entries, got {observed.dtype} of shape {tuple(observed.shape)}"
                )
            read = observed = observed.to(x.device)
            event_dim = x.dim() - len(self.batch_shape)
            if observed.dim() == x.dim() and event_dim:
                read, entries = observed.flatten(-event_dim).any(-1), observed
            x = torch.where(observed.reshape(observed.shape + (1,) * (x.dim() - observed.dim())), x, 0)
        # The question costs a synchronisation on a GPU; it is asked where Pyro's own are.
        if Distribution._validate_args and not (finite_entries := x.isfinite()).all():
            raise ValueError(
                "x: expected finite numbers where observed, got others at index "
                f"{(~finite_entries).nonzero()[0].tolist()}; pass observed= with False where x is missing"
            )
        return x, read, entries

    def _to_device(self, name: str, value: Tensor | None, trailing: int) -> Tensor | None:
        """The value, (*batch_shape, ...) with so many more dimensions, on the device of this state."""
        if value is None:
            return None
        if value.dim() != len(self.batch_shape) + trailing or value.shape[: len(self.batch_shape)] != self.batch_shape:
            more = ", ".join(["C"] if trailing == 1 else ["steps", "C"])
            raise ValueError(
                f"{name}: expected shape {tuple(self.batch_shape)} and then ({more}), got {tuple(value.shape)}"
            )
        return value.to(self.log_likelihood.device)

    def _possible(self, labels: Tensor | None, allowed: Tensor | None) -> Tensor | None:
        """The states that the labels (where the model uses them) and `allowed` leave, (*batch_shape, K); None: all."""
        shape, num_states = self.batch_shape, self.model.num_states
        possible = None
        if labels is not None and self.model.use_labels:
            if labels.dtype != torch.int64 or labels.shape != shape:
                raise ValueError(
                    f"labels: expected int64 of shape {tuple(shape)}, got {labels.dtype} of shape {tuple(labels.shape)}"
                )
            # Elsewhere than on the CPU the question costs a synchronisation.
            if labels.device.type == "cpu" and int(labels.max()) >= num_states:
                raise ValueError(f"labels: expected states below {num_states}, got {int(labels.max())}")
            labels = labels.to(self.log_likelihood.device).unsqueeze(-1)
            possible = (labels < 0) | (labels == torch.arange(num_states, device=labels.device))
        if allowed is not None:
            if allowed.dtype != torch.bool or allowed.shape != (*shape, num_states):
                raise ValueError(
                    f"allowed: expected bool of shape {(*shape, num_states)}, "
                    f"got {allowed.dtype} of shape {tuple(allowed.shape)}"
                )
            allowed = allowed.to(self.log_likelihood.device)
            possible = allowed if possible is None else possible & allowed
        return possible
