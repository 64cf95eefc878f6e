"""The hidden Markov model as a Pyro program, built from parts."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.indexing import Vindex
from torch import Generator, Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain, statewise
from pyrohmm.models.alignment import match_states, overlap
from pyrohmm.models.blank import Blank, check_data, check_states
from pyrohmm.models.filter_state import FilterState
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.models.lags import lags_at, lags_of
from pyrohmm.models.saving import SavableModel
from pyrohmm.nn import Initial, Part, Transition
from pyrohmm.nn._free import num_trainable
from pyrohmm.nn._relabel import as_permutation
from pyrohmm.program import markov, posterior
from pyrohmm.program.posterior import trace_given


class Potentials(NamedTuple):
    """The log-probabilities that `pyrohmm.ops` takes: initial, transition and observation logits."""

    initial: Any
    transition: Any
    observation: Any


class HMM(SavableModel):
    r"""A hidden Markov model of many sequences, with the states summed out exactly.

    .. math::
        p(x) = \sum_{z_{1:T}} p(z_1 \mid c_1) \prod_{t>1} p(z_t \mid z_{t-1}, c_t) \prod_t p(x_t \mid z_t, c_t, x_{<t})

    with inputs c, if the parts read any, and earlier observations, if the emission is autoregressive (order > 0).
    Before the start these are 0, symbols -1; a missing one is 0.

    The model is a Pyro program: call it, or `.model`, on `Sequences`, with any inference algorithm of Pyro. Its sites
    are the plate "sequences" (with the scale of a minibatch) and the collapsed factor "time" of the loop over the
    sites "z" (N, T) and "x" (N, T, *event). Parameters that were replaced by `pyro.nn.PyroSample` priors are sampled
    once, at the start. The priors that parts were given (`prior=`) are the factor "prior": their parameters stay
    points, and SVI finds the most probable ones, as `fit_em` does.

    Args:
        emission: a part like those of `pyrohmm.nn`, with the attributes num_states, event_shape and order.
        initial: the law of the first state. Default: `pyrohmm.nn.Initial(K)`.
        transition: the law of the next state. Default: `pyrohmm.nn.Transition(K)`.
        guide: a Pyro program of the data that samples the model's latent sites, if it has any. Default: empty.
        use_labels: whether states are known where the data has labels (semi-supervised): every other state is then
            impossible there, and `log_prob` is that of observations and labels together. `posterior` knows them as
            well, so what it decodes agrees with the labels: set `model.use_labels = False` to see how well it does
            without.
        generator: source of the random start of the default parts; torch's global one if None.

    Raises:
        TypeError: a part is no module, or `guide` is not callable.
        ValueError: the parts differ in their number of states, or `initial` depends on another transition than the
            model's.

    Reference:
        Rabiner (1989), "A tutorial on hidden Markov models and selected applications in speech recognition"; with
        inputs, Bengio and Frasconi (1995), "An input output HMM architecture".

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
        >>> data = Sequences.from_list([[0, 0, 2, 2], [2, 0]])
        >>> model.log_prob(data).shape, model.posterior(data).viterbi().states
        (torch.Size([2]), tensor([[ 0,  0,  1,  1], [ 1,  0, -1, -1]]))
        >>> model.num_states, model.num_parameters
        (2, 12)
    """

    # Whether fits look for the most probable parameters, for which priors need a mode; else they are sites.
    point_parameters: bool = True
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
        if any(module is not self.transition for module in getattr(self.initial, "depends_on", ())):
            raise ValueError("initial: expected a law that depends on the model's own transition=, got one on another")
        if guide is not None and not callable(guide):
            raise TypeError(f"guide: expected a callable, got {type(guide).__name__}")
        self.given_guide = guide
        # Whether tables of parameters are those of several models, (R, 1, 1) in front; see `pyrohmm.fit_em`.
        self.side_by_side = False
        self.use_labels = use_labels

    def forward(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program.

        Args:
            data: N sequences. Without observations (x None) the program simulates them, as sites "z" and "x".
            vectorized: False for the plain sequential program, with sites z_0, x_0, ..., for `TraceEnum_ELBO`.

        Raises:
            ValueError: x does not have the emission's event shape, or a label (if used) is no state. On a GPU labels
                are looked at only where Pyro's validation is on.
        """
        self._check(data)
        self._sample_priors(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            inputs_at = self._inputs(data)
            state = None
            for t in markov("time", data.num_steps, dim=-1, lengths=data.lengths, vectorized=vectorized):
                inputs = inputs_at(t)
                # No variable for the logits: the loop would take what it holds for a dependence on older states.
                state = pyro.sample("z", self._next_state(state, inputs))
                if self.use_labels and data.labels is not None:
                    label = data.labels[:, t]
                    pyro.factor("label", torch.where((label < 0) | (label == state), 0.0, -torch.inf))
                if data.allowed is not None:
                    possible = Vindex(data.allowed[:, t])[..., state]
                    pyro.factor("allowed", torch.where(possible, 0.0, -torch.inf))
                x = None if data.x is None else data.x[:, t]
                observed: Any = True if data.mask is None else data.observed[:, t]
                entries = None if data.entries is None else data.entries[:, t]
                with poutine.mask(mask=observed):
                    pyro.sample("x", self._emission(state, inputs, lags_at(self.emission, data, t), entries), obs=x)

    def model(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program, the same as calling the model; arguments as for `forward`."""
        self(data, vectorized=vectorized)

    def guide(self, data: Sequences | Blank) -> Any:
        """The given guide; without one nothing is sampled, as the model has no latent site but its states."""
        return None if self.given_guide is None else self.given_guide(data)

    def _check(self, data: Sequences | Blank) -> None:
        check_data(data, self.emission.event_shape)
        check_states(data, self.num_states, labels=self.use_labels)

    def _sample_priors(self, data: Sequences | Blank) -> None:
        """Sample the parameters that have priors here, where they belong to no plate; PyroModule remembers them.

        Points have the factor of their priors.
        """
        for part in self.parts:
            for module in part.modules():
                for name in getattr(module, "_pyro_samples", ()):
                    getattr(module, name)
        if data.x is not None and any(getattr(part, "has_prior", False) for part in self.parts):
            pyro.factor("prior", self.log_prior())

    def _inputs(self, data: Sequences | Blank) -> Callable[[slice], Tensor | None]:
        """What the parts read at some steps, as a function of them; called once, in the plate of the sequences."""
        return lambda t: None if data.inputs is None else data.inputs[:, t]

    def _next_state(self, state: Tensor | None, inputs: Tensor | None) -> dist.Categorical:
        return dist.Categorical(logits=self.initial(inputs) if state is None else self.transition(state, inputs))

    def _emission(
        self, state: Tensor, inputs: Tensor | None, before: Tensor | None, entries: Tensor | None
    ) -> TorchDistributionMixin:
        # Parts of others need not know of missing entries.
        missing = {} if entries is None else {"observed": entries}
        return self.emission(state, inputs, before, **missing)

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the priors of the parts (`prior=`), up to a constant, in nats.

        `model.log_prob(data).sum() + model.log_prior()` is what `fit_em` and `fit_svi` make large.

        Returns:
            ().

        Example:
            >>> from pyrohmm.nn import CategoricalEmission
            >>> HMM(CategoricalEmission(2, 3, prior=dist.Dirichlet(2 * torch.ones(3)))).log_prior() < 0
            tensor(True)
        """
        # Of models side by side, one for each. Parts that run leave nothing behind in Pyro's store.
        with own_parameters(self):
            priors = [part.log_prior().flatten() for part in self.parts if isinstance(part, Part)]
        total = torch.stack(torch.broadcast_tensors(*priors)).sum(0) if priors else torch.zeros(1)
        return total if self.side_by_side else total.squeeze(0)

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """Initial law, transition and emission."""
        return self.initial, self.transition, self.emission

    @property
    def num_states(self) -> int:
        """K."""
        return self.emission.num_states

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers in the three parts.

        A table of logits counts in full, though K logits are K - 1 probabilities.
        """
        return num_trainable(nn.ModuleList(self.parts))

    @property
    def num_free_parameters(self) -> int:
        """Number of free numbers in the three parts, as information criteria count them.

        As `num_parameters`, but a row of K logits counts K - 1, and a forbidden start or edge nothing. A part of your
        own says it in an attribute `num_free_parameters`, or counts in full. The weights of a network all count.

        Example:
            >>> from pyrohmm.nn import CategoricalEmission
            >>> model = HMM(CategoricalEmission(2, 3))
            >>> model.num_parameters, model.num_free_parameters
            (12, 7)
        """
        surplus = 0
        for part in self.parts:
            trainable = num_trainable(part)
            surplus += trainable - getattr(part, "num_free_parameters", trainable)
        # Not the sum over the parts: they may share a network.
        return self.num_parameters - surplus

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

    def potentials(
        self,
        data: Sequences,
        parts: Collection[str] = ("initial", "transition", "emission"),
        products: Any = None,
    ) -> Potentials:
        """The log-potentials of the state chains, what `pyrohmm.ops` takes, without running the program.

        Labels (with `use_labels`) and `data.allowed` are in the observation logits; what is missing is 0 there.

        Args:
            data: N sequences.
            parts: which are wanted; None stands for the potentials of the others.
            products: what `emission.products` made of all steps, if it is at hand; without gradients then.

        Returns:
            `Potentials`: log p(z_1), (K,) or (N, K); log p(z_{t+1} | z_t), (K, K) or (N, T-1, K, K), both
            normalised; and log p(x_t | z_t), (N, T, K), without meaning past the length.

        Raises:
            ValueError: as in `forward`, or a parameter has a `PyroSample` prior.

        Example:
            >>> from pyrohmm import ops
            >>> from pyrohmm.nn import BernoulliEmission
            >>> model, data = HMM(BernoulliEmission(2, 3)), Sequences(torch.ones(5, 4, 3))
            >>> torch.allclose(ops.log_partition(*model.potentials(data)), model.log_prob(data))
            True
        """
        self._check(data)
        self._refuse_priors()
        with own_parameters(self):
            return Potentials(
                self._initial_logits(data) if "initial" in parts else None,
                self._transition_logits(data) if "transition" in parts else None,
                self._observation_logits(data, products) if "emission" in parts else None,
            )

    def _initial_logits(self, data: Sequences) -> Tensor:
        logits = self.initial(None if data.inputs is None else data.inputs[:, :1]).log_softmax(-1)
        # Without its axis of time, which parts that read no inputs do not have.
        return logits if logits.dim() == 1 else logits.squeeze(-2)

    def _transition_logits(self, data: Sequences) -> Tensor:
        inputs = None if data.inputs is None else data.inputs[:, 1:]
        logits = self.transition(self._states(), inputs).log_softmax(-1).movedim(0, -2)
        # One matrix for all, where nothing depends on the sequence and the step.
        return logits.reshape(logits.shape[-2:]) if logits.shape[:-2].numel() == 1 else logits

    def _observation_logits(self, data: Sequences, products: Any) -> Tensor:
        logits = None if products is None else self.emission.log_prob_of_products(products)
        if logits is None:
            logits = statewise.log_prob(self._emission_law(data), data.x, data.observed).movedim(0, -1)
            # Of data in another dtype.
            logits = logits.to(next((p.dtype for p in self.parameters() if p.is_floating_point()), logits.dtype))
        else:
            logits = logits.unflatten(-2, data.x.shape[:2])
        if data.mask is not None:
            logits = torch.where(data.observed.unsqueeze(-1), logits, 0.0)
        if self.use_labels and data.labels is not None:
            states = torch.arange(self.num_states, device=logits.device)
            label = data.labels.unsqueeze(-1)
            logits = logits.masked_fill((label >= 0) & (label != states), -torch.inf)
        return logits if data.allowed is None else logits.masked_fill(~data.allowed, -torch.inf)

    def emission_law(self, data: Sequences) -> TorchDistributionMixin:
        """The law of every observation in every state, given what came before it in its sequence.

        Args:
            data: N sequences; an emission of order > 0 reads their observations too.

        Returns:
            A distribution whose batch shape broadcasts to (K, N, T).

        Raises:
            ValueError: as for `potentials`.

        Example:
            >>> from pyrohmm.nn import PoissonEmission
            >>> data = Sequences(torch.ones(5, 4, 1))
            >>> HMM(PoissonEmission(2, 1, rate=[[2.0], [9.0]])).emission_law(data).mean.flatten().detach().round()
            tensor([2., 9.])
        """
        self._check(data)
        self._refuse_priors()
        with own_parameters(self):
            return self._emission_law(data)

    def _emission_law(self, data: Sequences) -> TorchDistributionMixin:
        return self._emission(self._states(), data.inputs, lags_of(self.emission, data), data.entries)

    def _refuse_priors(self) -> None:
        if names := self._names_of_priors():
            raise ValueError(f"model: expected parameters without PyroSample priors, got {names}")

    def _states(self) -> Tensor:
        """All states, to the left of sequences and steps, and of models side by side."""
        device = next((parameter.device for part in self.parts for parameter in part.parameters()), None)
        return torch.arange(self.num_states, device=device).reshape(-1, *[1] * (3 if self.side_by_side else 2))

    def posterior(self, data: Sequences, guide: Callable[..., Any] | None = None) -> MarkovChain:
        """The law of the state paths given the sequences, of batch shape (N,).

        Latent sites outside of the loop, if any, are drawn once from the guide.

        With `use_labels` it is given the labels too, and `viterbi` and `marginals` repeat them: no measure of how well
        a model finds them. Set `model.use_labels = False` for that.

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

            Labels are found as long as they are told:

            >>> data = Sequences(torch.ones(1, 4, 3), labels=torch.tensor([[0, 1, 1, 0]]))
            >>> model = HMM(BernoulliEmission(2, 3, probs=[[0.1] * 3, [0.9] * 3]), use_labels=True)
            >>> model.posterior(data).viterbi().states
            tensor([[0, 1, 1, 0]])
            >>> model.use_labels = False
            >>> model.posterior(data).viterbi().states
            tensor([[1, 1, 1, 1]])
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
        device = next(self.parameters(), torch.empty(())).device
        blank = Blank.of(num_sequences, num_steps, lengths, inputs, device)
        with torch.no_grad(), seeded(seed, device), self._with_guide(guide) as guide:
            drawn = poutine.trace(guide).get_trace(blank)
            sites: Any = poutine.trace(poutine.replay(self.model, trace=drawn)).get_trace(blank).nodes
        return Sequences(sites["x"]["value"], blank.lengths, inputs=blank.inputs, labels=sites["z"]["value"])

    def filter_state(self, batch_shape: int | Sequence[int] = (), *, lag: int = 0) -> FilterState:
        """A filter for a stream of observations, before the first of them.

        Args:
            batch_shape: how many sequences run side by side, () for one without a batch axis; an int N for (N,).
            lag: how many steps back its fixed-lag smoother looks.

        Raises:
            TypeError, ValueError: a size that is no int in range, or parameters that have priors.

        Example:
            >>> from pyrohmm.nn import PoissonEmission
            >>> state = HMM(PoissonEmission(2, 3)).filter_state(5)
            >>> state.update(torch.ones(5, 3)).log_probs.shape
            torch.Size([5, 2])
        """
        return FilterState(self, batch_shape, lag=lag)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        The likelihood of observations stays the same. Labels and states decoded before become
        `permutation.argsort()[states]`; what an optimiser remembers of the parameters keeps the old order.

        Args:
            permutation: (K,), each state once.

        Raises:
            TypeError: a part has no method `relabel`, as a part of your own may not have. Nothing has changed then.
            ValueError: it is no permutation, or parameters have priors. Nothing has changed then.

        Example:
            >>> from pyrohmm.nn import PoissonEmission
            >>> model = HMM(PoissonEmission(3, 1, rate=[[2.0], [9.0], [4.0]]))
            >>> model.relabel([0, 2, 1])
            >>> model.emission.log_rate.exp().flatten().detach().round()
            tensor([2., 4., 9.])
        """
        if priors := self._names_of_priors():
            raise ValueError(f"relabel: expected parameters without priors, got PyroSample for {', '.join(priors)}")
        order = as_permutation(permutation, self.num_states)
        for name in ("initial", "transition", "emission"):
            if not callable(getattr(getattr(self, name), "relabel", None)):
                raise TypeError(f"{name}: expected a method relabel(permutation), like the parts of pyrohmm.nn have")
        for part in self.parts:
            part.relabel(order)

    def align(self, reference: "HMM | MarkovChain | Tensor", data: Sequences) -> Tensor:
        """Put the states into the order that agrees best with a reference on the same data, in place.

        The overlap of two states is in how many steps both are expected; see `overlap` and `match_states`.

        Args:
            reference: another model, its posterior of the data, or labels (N, T), int64, -1 where unknown; of at most
                K states. With fewer, the states that match none come last.
            data: N sequences.

        Returns:
            (K,), the permutation that was applied; see `relabel`.

        Raises:
            TypeError, ValueError: as in `overlap`, `match_states` and `relabel`.

        Example:
            >>> from pyrohmm.nn import CategoricalEmission
            >>> model = HMM(CategoricalEmission(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
            >>> data = Sequences.from_list([[0, 0, 2, 2], [2, 0]])
            >>> model.align(torch.tensor([[1, 1, 0, -1], [-1, -1, -1, -1]]), data)
            tensor([1, 0])
            >>> model.posterior(data).viterbi().states
            tensor([[ 1,  1,  0,  0], [ 0,  1, -1, -1]])
        """
        with torch.no_grad():
            if isinstance(reference, HMM):
                reference = reference.posterior(data)
            permutation = match_states(overlap(self.posterior(data), reference))
        self.relabel(permutation)
        return permutation

    @contextmanager
    def _with_guide(self, guide: Callable[..., Any] | None) -> Iterator[Callable[..., Any]]:
        """The guide to use, by default the model's own, while it and the model keep their parameters to themselves."""
        guide = self.guide if guide is None else guide
        with own_parameters(self, *([guide] if isinstance(guide, nn.Module) else [])):
            yield guide

    def _names_of_priors(self) -> list[str]:
        """The parameters of the parts that are `PyroSample` priors."""
        return [
            f"{path}.{name}"
            for path, module in self.named_modules()
            if path.split(".")[0] in ("initial", "transition", "emission")
            for name in getattr(module, "_pyro_samples", ())
        ]


def _num_states(name: str, part: nn.Module) -> int:
    if not isinstance(part, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, like the parts of pyrohmm.nn, got {type(part).__name__}")
    num_states = getattr(part, "num_states", None)
    if not isinstance(num_states, int):
        raise TypeError(f"{name}: expected an int attribute num_states, got {num_states!r}")
    return num_states
