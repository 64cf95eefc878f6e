"""Switching state space models: discrete states that choose the dynamics of continuous ones."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import pyro_method
from torch import Generator, Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.distributions import ContinuousPath, MarkovChain
from pyrohmm.models.alignment import States, match_states, overlap
from pyrohmm.models.blank import Blank, check_data
from pyrohmm.models.evenness import evenness
from pyrohmm.models.inference_network import inference_network, proposed_path
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.models.saving import SavableModel
from pyrohmm.nn import Emitter, Initial, RegressionTransition, SwitchingDynamics, Transition
from pyrohmm.nn._common import count
from pyrohmm.nn._relabel import as_permutation
from pyrohmm.program import markov, posterior, previous
from pyrohmm.program.posterior import chains_in

Recurrence = Literal["latent", "observed"]


class SwitchingSSM(SavableModel):
    r"""A switching state space model: states z, a path h of vectors whose dynamics the states choose, observations x.

    .. math::
        p(x, h, z) = \prod_t p(z_t \mid z_{t-1})\, p(h_t \mid h_{t-1}, z_t)\, p(x_t \mid h_t)

    The path is proposed by an amortised guide, a structured inference network,

    .. math::
        q(h \mid x) = \prod_t N\big(h_t;\; P x_t + \mu(h_{t-1}, f(x)_t),\; \sigma(h_{t-1}, f(x)_t)^2\big),

    with features f of a recurrent network and a matrix P that `pyrohmm.infer.initialize_switching` sets and no fit
    changes (0 without it). The states are summed out exactly given the path: the bound that is maximised is
    E_q[log p(x, h) - log q(h | x)]. With `recurrent` the transitions depend on h_{t-1} ("latent") or on x_{t-1}
    ("observed", 0 where missing) too, besides inputs of the data.

    The model is a Pyro program, `.model`, and so is `.guide`, both of `Sequences`. Their sites, in the plate
    "sequences" (dim -2, with the scale of a minibatch), are the path "h" (N, 1, T, D) of the guide, and in the model
    the factor "time" of the loop over the sites "z", "h" and "x". Missing steps and entries add nothing, and the guide
    is told of them. `pyrohmm.infer.initialize_switching` sets a start without which a fit seldom finds the states.

    Evenness is an option against the collapse to one state: in training mode the objective has a term

    .. math::
        -w \sum_t \mathrm{KL}\big(\mathrm{uniform} \,\|\, p(z_t \mid x, h)\big),

    a site "evenness", whose weight w falls linearly from `evenness` to 0 within `evenness_runs` runs of the program in
    training mode (the steps of a fit, with one particle). The runs are counted in a buffer, so that they are saved.
    `fit_svi(annealing=)` weights log q(h | x) only, as log p(h | z) is in the loop's factor: less entropy at first.

    Args:
        dynamics: the law of h given the state and the vector before, like `pyrohmm.nn.SwitchingDynamics`: a module with
            the attributes num_states and dim.
        emission: the law of an observation given h, like `pyrohmm.nn.Emitter`: a module with the attributes dim and
            event_shape (P,).
        initial: the law of the first state. Default: `pyrohmm.nn.Initial(K)`.
        transition: the law of the next state; with `recurrent` it must read inputs, the vector h_{t-1} or x_{t-1} and
            then the inputs of the data, if there are any. Default: `Transition(K)`, or with `recurrent` a
            `RegressionTransition` whose weights the present states share; both start sticky.
        recurrent: None, "latent" or "observed".
        inference: what the guide sees of the observations, beside x_t and h_{t-1}: "both" (all), "right-left"
            (x_t..x_T), "left-right" (x_1..x_t), or "mean-field" (all, but not h_{t-1}).
        hidden: size of the recurrent network, in each direction.
        evenness: the weight w at the start, at least 0.
        evenness_runs: runs until it is 0.
        generator: source of the random start; torch's global one if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or parts do not fit together.

    Reference:
        Dong, Seybold, Murphy and Bui (2020), "Collapsed amortized variational inference for switching nonlinear
        dynamical systems", ICML; Linderman et al. (2017), "Bayesian learning and inference in recurrent switching
        linear dynamical systems", AISTATS.
    """

    # Any: what is asked of a part, beyond being a module, is in its documented attributes.
    dynamics: Any
    emission: Any
    initial: Any
    transition: Any
    direct: Tensor
    centre: Tensor
    spread: Tensor
    runs: Tensor

    def __init__(
        self,
        dynamics: nn.Module,
        emission: nn.Module,
        initial: nn.Module | None = None,
        transition: nn.Module | None = None,
        *,
        recurrent: Recurrence | None = None,
        inference: str = "both",
        hidden: int = 32,
        evenness: float = 0.0,
        evenness_runs: int = 1000,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.dynamics, self.emission = dynamics, emission
        num_states, dim = self.dynamics.num_states, self.dynamics.dim
        if self.emission.dim != dim:
            raise ValueError(f"emission: expected one of vectors of size {dim}, like the dynamics, got {emission.dim}")
        if recurrent not in (None, "latent", "observed"):
            raise ValueError(f"recurrent: expected None, 'latent' or 'observed', got {recurrent!r}")
        if not evenness >= 0:
            raise ValueError(f"evenness: expected a weight of at least 0, got {evenness}")
        self.recurrent, self.evenness = recurrent, float(evenness)
        self.evenness_runs = count("evenness_runs", evenness_runs)
        size = self.emission.event_shape.numel()
        self.initial = Initial(num_states, generator=generator) if initial is None else initial
        if transition is not None:
            self.transition = transition
        elif recurrent is None:
            self.transition = Transition(num_states, sticky=2.0, generator=generator)
        else:
            context = dim if recurrent == "latent" else size
            self.transition = RegressionTransition(num_states, context, shared=True, sticky=2.0, generator=generator)
        for name in ("initial", "transition"):
            if (got := getattr(self, name).num_states) != num_states:
                raise ValueError(f"{name}: expected {num_states} states, like the dynamics, got {got}")
        self.encoder, self.combiner = inference_network(inference, size, dim, hidden, generator)
        # Not trained: steps in all its entries at once move a path by many of its standard deviations.
        self.register_buffer("direct", torch.zeros(dim, size))
        # By which the guide makes its inputs of about unit size.
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def forward(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program.

        Args:
            data: N sequences. Without observations (x None) the program simulates them, as sites "z", "h" and "x".
                With them it needs the path of a guide.
            vectorized: False for the plain sequential program, with sites z_0, h_0, x_0, ..., for `TraceEnum_ELBO`.

        Raises:
            ValueError: x does not have the emission's event shape, or there is no guide.
        """
        check_data(data, self.emission.event_shape)
        start = torch.zeros(self.dynamics.dim, device=data.index.device)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2), poutine.trace() as seen:
            state = None
            for t in markov("time", data.num_steps, dim=-1, lengths=data.lengths, vectorized=vectorized):
                before = None if state is None else previous("h", None, t, initial=start)
                state = pyro.sample("z", self._next_state(state, before, data, t))
                h = pyro.sample("h", self.dynamics(state, before))
                x = None if data.x is None else data.x[:, t]
                observed: Any = True if data.mask is None else data.observed[:, t]
                with poutine.mask(mask=observed):
                    law = self.emission(h, None if data.entries is None else data.entries[:, t])
                    pyro.sample("x", law, obs=x)
            if data.x is not None and vectorized and (weight := self._evenness()) is not None:
                pyro.factor("evenness", weight * evenness(chains_in(seen.trace)["time"]).unsqueeze(-1))

    def model(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program, the same as calling the model; arguments as for `forward`."""
        self(data, vectorized=vectorized)

    @pyro_method
    def guide(self, data: Sequences | Blank, **_: Any) -> None:
        """The Pyro program of the inference network: the site "h". Nothing is sampled where there are no data."""
        if isinstance(data, Blank):
            return
        check_data(data, self.emission.event_shape)
        law = self._path(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("h", law)

    def _next_state(
        self, state: Tensor | None, before: Tensor | None, data: Sequences | Blank, t: slice
    ) -> dist.Categorical:
        known = [] if data.inputs is None else [data.inputs[:, t]]
        if state is None:
            return dist.Categorical(logits=self.initial(known[0] if known else None))
        if self.recurrent == "latent":
            assert before is not None
            known.insert(0, before)
        elif self.recurrent == "observed":
            known.insert(0, previous("x", data.x, t, initial=torch.zeros_like(self.centre)))
        return dist.Categorical(logits=self.transition(state, torch.cat(known, -1) if known else None))

    def _path(self, data: Sequences) -> ContinuousPath:
        """The guide's law of the path, with the batch dimensions of the program, (N, 1)."""
        seen = data.valid.unsqueeze(-1) if data.entries is None else data.entries
        seen = seen & data.observed.unsqueeze(-1)
        x = torch.where(seen, (data.x - self.centre) / self.spread, 0.0)
        features = self.encoder(x, data.lengths, observed=data.mask)
        direct = (x @ self.direct.mT).unsqueeze(1)
        step = self.combiner(features.unsqueeze(1))
        step.known = step.known + nn.functional.pad(direct, (0, self.dynamics.dim))  # to the means
        return proposed_path(self.combiner, step, data.num_steps, data.lengths.unsqueeze(-1))

    def _evenness(self) -> Tensor | None:
        """The weight of evenness in this run of the program, which is counted; None where there is none."""
        if not self.training or self.evenness == 0:
            return None
        weight = self.evenness * (1 - self.runs / self.evenness_runs).clamp_min(0)
        self.runs += 1
        return weight

    @property
    def num_states(self) -> int:
        """K."""
        return self.dynamics.num_states

    def path(self, data: Sequences) -> ContinuousPath:
        """The guide's law of the paths given the sequences, q(h | x), of batch shape (N, 1) and event shape (T, D).

        Args:
            data: N sequences.

        Raises:
            ValueError: as in `forward`.
        """
        check_data(data, self.emission.event_shape)
        with own_parameters(self):
            return self._path(data)

    def posterior(self, data: Sequences, num_draws: int | None = None, *, seed: int | None = None) -> MarkovChain:
        """The law of the states given the sequences and paths drawn from the guide, p(z | x, h), h ~ q(h | x).

        Args:
            data: N sequences.
            num_draws: S, of the path of each sequence.
            seed: of the draws, without any effect on torch's global random numbers. They are used if it is None.

        Returns:
            A chain of batch shape (S, N), or (N,) for one draw without an axis, where `num_draws` is None.

        Raises:
            ValueError: as in `forward`.

        Example:
            >>> model = SwitchingLDS(2, 2, 5)
            >>> data = model.simulate(3, 20, seed=0)
            >>> model.posterior(data).viterbi().states.shape, model.posterior(data, 10).batch_shape
            (torch.Size([3, 20]), torch.Size([10, 3]))
        """

        def drawn(program: Any) -> Any:
            def run(data: Sequences) -> None:
                with nullcontext() if num_draws is None else pyro.plate("draws", num_draws, dim=-3):
                    program(data)

            return run

        with own_parameters(self), seeded(seed, self.centre.device), _evaluating(self):
            return posterior(drawn(self.model), drawn(self.guide))(data)["time"]

    def marginals(self, data: Sequences, num_draws: int = 20, *, seed: int | None = 0) -> Tensor:
        """The probability of each state at each step, p(z_t | x), averaged over paths drawn from the guide.

        Args:
            data: N sequences.
            num_draws: of the path of each sequence.
            seed: of the draws, as for `posterior`.

        Returns:
            (N, T, K), 0 past the length.
        """
        with torch.no_grad():
            return self.posterior(data, num_draws, seed=seed).marginals.mean(0)

    def decode(self, data: Sequences, num_draws: int = 20, *, seed: int | None = 0) -> Tensor:
        """The most probable state at each step by `marginals`, (N, T), int64, -1 past the length.

        >>> model = SwitchingLDS(2, 2, 5)
        >>> model.decode(model.simulate(3, 20, lengths=torch.tensor([20, 1, 7]), seed=0))[1, :3].tolist()[1:]
        [-1, -1]
        """
        states = self.marginals(data, num_draws, seed=seed).argmax(-1)
        return torch.where(data.valid, states, -1)

    def simulate(
        self,
        num_sequences: int,
        num_steps: int,
        *,
        lengths: Tensor | None = None,
        inputs: Tensor | None = None,
        seed: int | None = None,
    ) -> Sequences:
        """Draw sequences, with their states as labels.

        Args:
            num_sequences: N.
            num_steps: T.
            lengths: (N,), int64, steps of each sequence; all T if None.
            inputs: (N, T, C), for transitions that read inputs.
            seed: of the random numbers, without any effect on torch's global ones. They are used if it is None.

        Returns:
            `Sequences` with x (N, T, P), labels (N, T) and the given inputs.

        Raises:
            TypeError, ValueError: a size that is no positive int, or a tensor that does not fit.

        Example:
            >>> SwitchingLDS(2, 2, 5, recurrent="latent").simulate(3, 20, lengths=torch.tensor([20, 1, 7]), seed=0)
            Sequences(3 sequences of 1 to 20 steps, event_shape=(5,), float32, labels)
        """
        blank = Blank.of(num_sequences, num_steps, lengths, inputs, self.centre.device)
        with torch.no_grad(), seeded(seed, self.centre.device), own_parameters(self):
            sites: Any = poutine.trace(self.model).get_trace(blank).nodes
        return Sequences(sites["x"]["value"], blank.lengths, inputs=blank.inputs, labels=sites["z"]["value"])

    def relabel(self, permutation: Any) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i]; see `HMM`."""
        order = as_permutation(permutation, self.num_states)
        for part in (self.initial, self.transition, self.dynamics):
            part.relabel(order)

    def align(self, reference: States, data: Sequences) -> Tensor:
        """Put the states into the order that agrees best with a reference on the same data, in place; see `HMM.align`.

        Args:
            reference: a chain over the states of the data, or labels (N, T), int64, -1 where unknown.
            data: N sequences.

        Returns:
            (K,), the permutation that was applied.
        """
        permutation = match_states(overlap(self.decode(data), reference, self.num_states))
        self.relabel(permutation)
        return permutation


class SwitchingLDS(SwitchingSSM):
    r"""A switching linear dynamical system, with Gaussian observations: `SwitchingSSM` with linear parts.

    .. math::
        h_t = A_{z_t} h_{t-1} + b_{z_t} + \epsilon_t, \quad x_t = C h_t + d + \eta_t

    with independent normal noise in each entry, that of h with scales for each state.

    Args:
        num_states: K.
        dim: D, of the path h.
        num_entries: P, of an observation.
        recurrent: None, "latent" (Linderman's recurrent systems) or "observed".
        generator: source of the random start; torch's global one if None.
        **settings: `initial`, `transition`, `inference`, `hidden`, `evenness`, `evenness_runs`, as in `SwitchingSSM`.

    Raises:
        TypeError, ValueError: as in `SwitchingSSM`.

    Reference:
        Ghahramani and Hinton (2000), "Variational learning for switching state-space models"; Fox et al. (2009),
        "Nonparametric Bayesian learning of switching linear dynamical systems"; Linderman et al. (2017).

    Example:
        >>> model = SwitchingLDS(2, 2, 10, recurrent="latent", evenness=1.0)
        >>> data = model.simulate(5, 30, seed=0)
        >>> data, model.decode(data).shape
        (Sequences(5 sequences of 30 steps, event_shape=(10,), float32, labels), torch.Size([5, 30]))
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        num_entries: int,
        *,
        recurrent: Recurrence | None = None,
        generator: Generator | None = None,
        **settings: Any,
    ):
        super().__init__(
            SwitchingDynamics(num_states, dim, generator=generator),
            Emitter(dim, num_entries, (), "gaussian", generator=generator),
            recurrent=recurrent,
            generator=generator,
            **settings,
        )


class SwitchingNLDS(SwitchingSSM):
    r"""A switching nonlinear dynamical system: `SwitchingSSM` with a network in the dynamics of each state.

    .. math::
        h_t = A_{z_t} h_{t-1} + b_{z_t} + \tfrac{1}{H} V_{z_t} \tanh(U_{z_t} h_{t-1} + c_{z_t}) + \epsilon_t, \quad
        x_t \sim p(x_t \mid \mathrm{network}(h_t))

    Args:
        num_states: K.
        dim: D, of the path h.
        num_entries: P, of an observation.
        units: H, of the hidden layer of each state's dynamics.
        emission_units: sizes of the hidden layers of the emission; none for a linear one.
        family: "gaussian" or "bernoulli", of the observations.
        recurrent: None, "latent" or "observed" (as Dong et al. have it).
        generator: source of the random start; torch's global one if None.
        **settings: `initial`, `transition`, `inference`, `hidden`, `evenness`, `evenness_runs`, as in `SwitchingSSM`.

    Raises:
        TypeError, ValueError: as in `SwitchingSSM`.

    Reference:
        Dong, Seybold, Murphy and Bui (2020), "Collapsed amortized variational inference for switching nonlinear
        dynamical systems", ICML.

    Example:
        >>> model = SwitchingNLDS(3, 4, 10, family="bernoulli", recurrent="observed")
        >>> data = model.simulate(5, 30, seed=0)
        >>> model.posterior(data, num_draws=7).marginals.shape
        torch.Size([7, 5, 30, 3])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        num_entries: int,
        *,
        units: int = 32,
        emission_units: tuple[int, ...] = (32,),
        family: str = "gaussian",
        recurrent: Recurrence | None = None,
        generator: Generator | None = None,
        **settings: Any,
    ):
        super().__init__(
            SwitchingDynamics(num_states, dim, count("units", units), generator=generator),
            Emitter(dim, num_entries, emission_units, family, generator=generator),
            recurrent=recurrent,
            generator=generator,
            **settings,
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
