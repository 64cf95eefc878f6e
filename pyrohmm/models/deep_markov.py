"""The deep Markov model: a state space model with continuous states, its parts networks."""

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineAutoregressive, affine_autoregressive
from pyro.nn import pyro_method
from torch import Generator, Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.distributions import ContinuousPath
from pyrohmm.models.blank import Blank, check_data
from pyrohmm.models.inference_network import inference_network, proposed_path
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.models.saving import SavableModel
from pyrohmm.nn import GatedTransition
from pyrohmm.nn._free import num_trainable
from pyrohmm.nn.encoder.encoder import built


class DeepMarkovModel(SavableModel):
    r"""Sequences with a path of hidden vectors h, and a network that infers it.

    .. math::
        p(x, h) = \prod_t p(h_t \mid h_{t-1})\, p(x_t \mid h_t), \qquad
        q(h \mid x) = \prod_t q(h_t \mid h_{t-1}, f(x)_t)

    The model is a Pyro program, `.model`, and so is `.guide`, both of `Sequences`. Their sites, in the plate
    "sequences" (dim -1, with the scale of a minibatch), are the path "h", of event shape (T, D), and in the model the
    observations "x", of event shape (T, *event). Missing steps and entries add nothing, and the guide is told of
    them. `inputs` and labels are not read.

    `pyrohmm.fit_svi(model, data, loss=pyro.infer.TraceMeanField_ELBO())` takes the divergence of each step of the guide
    from the transition in closed form, given the vector before; gradients then vary less.

    Args:
        emission: the law of an observation given h, like `pyrohmm.nn.Emitter`: a module with the attributes dim (D) and
            event_shape.
        transition: the law of h given the one before, with the attribute initial: the vector before the first step.
            Default: `GatedTransition(D, 2 * D)`.
        inference: what q(h_t | ...) sees of the observations: "left-right" (a recurrent network's summary of x_1..x_t,
            and h_{t-1}), "right-left" (x_t..x_T and h_{t-1}; the exact posterior is of this form), "both" (all, and
            h_{t-1}), "mean-field" (all, not h_{t-1}).
        hidden: size of the recurrent network, in each direction.
        dropout: of its features, in training mode.
        num_flows: inverse autoregressive flows that each vector of the guide's path passes through, the identity at the
            start; 0 for none. With them no divergence is in closed form, and gradients vary more.
        generator: source of the random start; torch's global one if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Reference:
        Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space models", AAAI; for
        the flows Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow".

    Example:
        >>> from pyrohmm.nn import Emitter
        >>> model = DeepMarkovModel(Emitter(4, 3), hidden=8)
        >>> data = model.simulate(5, 7, lengths=torch.tensor([7, 7, 1, 3, 5]), seed=0)
        >>> data, model.posterior(data).sample().shape
        (Sequences(5 sequences of 1 to 7 steps, event_shape=(3,), float32), torch.Size([5, 7, 4]))
    """

    # Any: what is asked of a part, beyond being a module, is in its documented attributes.
    emission: Any
    transition: Any

    def __init__(
        self,
        emission: nn.Module,
        transition: nn.Module | None = None,
        *,
        inference: str = "right-left",
        hidden: int = 100,
        dropout: float = 0.0,
        num_flows: int = 0,
        generator: Generator | None = None,
    ):
        super().__init__()
        if not isinstance(emission, nn.Module):
            raise TypeError(f"emission: expected a torch.nn.Module, got {type(emission).__name__}")
        if not isinstance(num_flows, int) or num_flows < 0:
            raise ValueError(f"num_flows: expected an int of at least 0, got {num_flows!r}")
        self.emission = emission
        dim = self.emission.dim
        self.transition = GatedTransition(dim, 2 * dim, generator=generator) if transition is None else transition
        if (shape := tuple(self.transition.initial.shape)) != (dim,):
            raise ValueError(f"transition: expected initial of shape ({dim},), like the state of emission, got {shape}")
        self.encoder, self.combiner = inference_network(
            inference, self.emission.event_shape.numel(), dim, hidden, generator
        )
        self.dropout = nn.Dropout(dropout)
        self.flows = nn.ModuleList(built(lambda: _identity_flow(dim), generator) for _ in range(num_flows))

    def forward(self, data: Sequences | Blank) -> None:
        """The Pyro program.

        Args:
            data: N sequences. Without observations (x None) the program simulates them, as sites "h" and "x".

        Raises:
            ValueError: x does not have the emission's event shape.
        """
        prior = self._prior(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-1):
            h = pyro.sample("h", prior)
            pyro.sample("x", self._observation(h, data), obs=data.x)

    def model(self, data: Sequences | Blank) -> None:
        """The Pyro program, the same as calling the model."""
        self(data)

    @pyro_method
    def guide(self, data: Sequences) -> None:
        """The Pyro program of the inference network: the site "h"."""
        posterior = self._posterior(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-1):
            pyro.sample("h", posterior)

    def _prior(self, data: Sequences | Blank) -> ContinuousPath:
        """The law of the paths before anything was observed."""
        check_data(data, self.emission.event_shape)
        transition = self.transition
        return ContinuousPath(
            transition,
            transition.initial,
            data.num_steps,
            lengths=data.lengths,
            batch_shape=(len(data.index),),
        )

    def _posterior(self, data: Sequences) -> ContinuousPath:
        """The law of the paths given the sequences."""
        features = self.dropout(self.encoder(data.x, data.lengths, observed=data.mask))
        return proposed_path(self.combiner, self.combiner(features), data.num_steps, data.lengths, self.flows)

    def _observation(self, h: Tensor, data: Sequences | Blank) -> Any:
        """The law of whole sequences given their paths."""
        law = self.emission(h, data.entries)
        return (law.mask(data.observed) if isinstance(data, Sequences) else law).to_event(1)

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers in the model and its guide."""
        return num_trainable(self)

    def posterior(self, data: Sequences) -> ContinuousPath:
        """The guide's law of the paths given the sequences, q(h | x), of batch shape (N,).

        Args:
            data: N sequences.

        Raises:
            ValueError: as in `forward`.
        """
        with own_parameters(self):
            return self._posterior(data)

    def bound(self, data: Sequences, num_particles: int = 1) -> Tensor:
        """The evidence lower bound of each sequence, estimated by draws from the guide, in nats; differentiable.

        Its expectation is below log p(x). `pyrohmm.infer.importance_log_prob(model, data)` comes nearer, with the
        number of its particles.

        Args:
            data: N sequences.
            num_particles: draws of each path.

        Returns:
            (N,).

        Raises:
            ValueError: as in `forward`.

        Example:
            >>> from pyrohmm.nn import Emitter
            >>> model = DeepMarkovModel(Emitter(4, 3), hidden=8)
            >>> model.bound(Sequences(torch.ones(2, 5, 3)), num_particles=10).shape
            torch.Size([2])
        """
        with own_parameters(self):
            prior, posterior = self._prior(data), self._posterior(data)
            h = posterior.rsample((num_particles,))
            terms = prior.log_prob(h) - posterior.log_prob(h) + self._observation(h, data).log_prob(data.x)
        return terms.mean(0)

    def simulate(
        self, num_sequences: int, num_steps: int, *, lengths: Tensor | None = None, seed: int | None = None
    ) -> Sequences:
        """Draw sequences.

        Args:
            num_sequences: N.
            num_steps: T.
            lengths: (N,), int64, steps of each sequence; all T if None.
            seed: of the random numbers, without any effect on torch's global ones. They are used if it is None.

        Returns:
            `Sequences` with x (N, T, *event).

        Raises:
            ValueError: a size that is no positive int, or lengths that do not fit.
        """
        device = next(self.parameters()).device
        blank = Blank.of(num_sequences, num_steps, lengths, None, device)
        with torch.no_grad(), seeded(seed, device), own_parameters(self):
            sites: Any = poutine.trace(self.model).get_trace(blank).nodes
        return Sequences(sites["x"]["value"], blank.lengths)


def _identity_flow(dim: int) -> AffineAutoregressive:
    """A flow that changes nothing yet: one that starts at random has to be unlearned first."""
    flow = affine_autoregressive(dim, [2 * dim])
    for parameter in flow.arn.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return flow
