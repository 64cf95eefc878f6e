"""A variational autoencoder whose codes follow a hidden Markov model."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from pyrohmm.data import Sequences
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.distributions.padding import fill_unread
from pyrohmm.models.blank import Blank, check_data
from pyrohmm.models.hmm import HMM
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.models.local_inference import LocalInference, local_inference
from pyrohmm.models.saving import SavableModel
from pyrohmm.nn import Encoder
from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.chain import small_linear


class StructuredVAE(SavableModel):
    r"""Sequences decoded from continuous codes, which are Gaussian given the states of a hidden Markov chain.

    .. math:: p(x, h, z) = p(z_1) \prod_{t>1} p(z_t \mid z_{t-1})
        \prod_t N(h_t; \mu_{z_t}, \Sigma_{z_t})\, p(x_t \mid \mathrm{decoder}(h_t))

    The guide is q(z) q(h), the best such one for a likelihood in which a network has put, in place of the decoder, an
    observation a_t of h_t with precisions j_t. It is found by coordinate ascent: with the marginals w of q(z), and
    precisions P_k of the states,

    .. math:: q(h_t) \propto N(a_t; h_t, \mathrm{diag}(j_t)^{-1}) \prod_k N(h_t; \mu_k, P_k^{-1})^{w_{tk}}, \qquad
        q(z) \propto p(z) \prod_t e^{E_q \log N(h_t; \mu_{z_t}, \Sigma_{z_t})},

    the second by forward-backward, in turn for a number of rounds. It starts from the prior's marginals. Gradients pass
    through all rounds (unrolled). At a step of which nothing was observed h_t is summed out: it is in neither the model
    nor the guide, and q(z) there follows from the other steps; then q(h_t) is the mixture sum_k w_tk N(mu_k, Sigma_k).

    The model, by `collapsed`, is

    - True: one factor p(h) = sum_z p(z) p(h | z), by the exact sum over paths, and q(h) is the guide. This bound is the
      tighter one. Fit it by `pyrohmm.fit_svi(model, data)`.
    - False: the sites z and h, and the guide q(z) q(h). Fit it by `pyrohmm.fit_svi(model, data, loss=PathELBO())`:
      `pyrohmm.infer.PathELBO` sums over the paths of the guide.

    `pyrohmm.infer.initialize_structured_vae` sets a start from which either finds the states more often.

    Args:
        emission: of the codes, K states with vectors of D numbers: `pyrohmm.nn.GaussianEmission`. Means that differ are
            a good start.
        decoder: of an observation, an emission of one state that reads the code as its inputs:
            `pyrohmm.nn.NeuralEmission(1, net, family, context=D)`, with a `net` of 1 + D inputs, the first of them 1.
        encoder: from sequences to features of each step; `pyrohmm.nn.StepEncoder` sees no other step.
        initial, transition: of the states, as in `pyrohmm.models.HMM`.
        num_rounds: of the coordinate ascent, at least 1.
        collapsed: see above.
        generator: source of the random start; torch's global one if None.

    Attributes:
        hmm: the `pyrohmm.models.HMM` of the codes, whose `relabel` changes the order of the states.

    Raises:
        TypeError, ValueError: a part of another kind or size.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta and Adams (2016), "Composing graphical models with neural networks for
        structured representations and fast inference".

    Example:
        >>> from pyrohmm.nn import GaussianEmission, NeuralEmission, StepEncoder
        >>> net = nn.Sequential(nn.Linear(1 + 2, 16), nn.Tanh(), nn.Linear(16, 2 * 5))
        >>> decoder = NeuralEmission(1, net, "gaussian", context=2)
        >>> model = StructuredVAE(GaussianEmission(3, 2, "full"), decoder, StepEncoder(5, 16))
        >>> data = model.simulate(4, 6, lengths=torch.tensor([6, 3, 1, 6]), seed=0)
        >>> data.x.shape, model.posterior(data).marginals.shape, model.reconstruct(data).shape
        (torch.Size([4, 6, 5]), torch.Size([4, 6, 3]), torch.Size([4, 6, 5]))
    """

    # Any: what is asked of a part, beyond being a module, is in its documented attributes.
    decoder: Any

    def __init__(
        self,
        emission: nn.Module,
        decoder: nn.Module,
        encoder: Encoder,
        *,
        initial: nn.Module | None = None,
        transition: nn.Module | None = None,
        num_rounds: int = 4,
        collapsed: bool = True,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.hmm = HMM(emission, initial, transition, generator=generator)
        shape = self.hmm.emission.event_shape
        if len(shape) != 1 or self.hmm.emission.order != 0:
            raise ValueError(f"emission: expected vectors, without previous ones, got event shape {tuple(shape)}")
        (self.dim,) = shape
        if not isinstance(encoder, Encoder):
            raise TypeError(f"encoder: expected a pyrohmm.nn.Encoder, got {type(encoder).__name__}")
        for name, expected in (("num_states", 1), ("context", self.dim), ("order", 0)):
            if (got := getattr(decoder, name, None)) != expected:
                raise ValueError(f"decoder: expected an emission with {name}={expected}, got {got}")
        self.decoder, self.encoder = decoder, encoder
        self.head = small_linear(encoder.num_features, 2 * self.dim, generator)
        self.num_rounds = count("num_rounds", num_rounds)
        self.collapsed = collapsed

    def forward(self, data: Sequences, *, collapsed: bool | None = None) -> None:
        """The Pyro program: sites "h" (N, T, D) and "x" (N, T, *event), and if not collapsed "z" (N, T).

        Args:
            data: N sequences.
            collapsed: whether z is summed out; as the model was built if None.

        Raises:
            TypeError, ValueError: the data does not fit the decoder.
        """
        self._check(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-1):
            chain = self.prior(data)
            if self.collapsed if collapsed is None else collapsed:
                codes: Any = self._collapsed(data, chain)
            else:
                state = pyro.sample("z", chain).clamp(min=0)
                codes = self.hmm.emission(state).mask(data.observed).to_event(1)
            code = pyro.sample("h", codes)
            law, x = self._observation(data, code)
            pyro.sample("x", law, obs=x)

    def model(self, data: Sequences) -> None:
        """The Pyro program, the same as calling the model."""
        self(data)

    def guide(self, data: Sequences) -> None:
        """The guide's program; sites as in the model."""
        found = self.infer(data)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-1):
            if not self.collapsed:
                pyro.sample("z", found.states)
            pyro.sample("h", found.codes.mask(data.observed).to_event(1))

    def prior(self, data: Sequences) -> MarkovChain:
        """p(z), the law of the paths before anything is observed, of batch shape (N,)."""
        initial, transition = self.hmm._initial_logits(data), self.hmm._transition_logits(data)
        return MarkovChain(initial, transition, lengths=data.lengths, num_steps=data.num_steps)

    def infer(self, data: Sequences) -> LocalInference:
        """q(z) and q(h), differentiable.

        Args:
            data: N sequences.

        Raises:
            TypeError, ValueError: the data does not fit the decoder or the encoder.
        """
        self._check(data)
        features = self.encoder(data.x, data.lengths, observed=data.mask, inputs=data.inputs)
        pseudo, precision = self.head(features).chunk(2, -1)
        law, prior = self._code_law(), self.prior(data)
        return local_inference(prior, law, pseudo, softplus(precision), data.observed, self.num_rounds)

    def _code_law(self) -> Any:
        """p(h_t | z_t) of all states, of batch shape (K,)."""
        return self.hmm.emission(torch.arange(self.hmm.num_states, device=self.head.weight.device))

    def _collapsed(self, data: Sequences, chain: MarkovChain) -> HiddenMarkovModel:
        """p(h) at the steps of which something was observed, of batch shape (N,)."""
        law, observed = self._code_law(), data.observed.unsqueeze(-1)
        law = law.expand((*data.observed.shape, self.hmm.num_states)).mask(observed)
        return HiddenMarkovModel(chain, law, time_varying=True)

    def _observation(self, data: Sequences, code: Tensor) -> tuple[Any, Tensor]:
        """p(x | h), of batch shape (N,), and x with something harmless where it is not observed."""
        law = self._decoded(code, data.entries)
        return law.mask(data.observed).to_event(1), fill_unread(data.x, data.observed, law)

    def _decoded(self, code: Tensor, entries: Tensor | None) -> Any:
        state = torch.zeros((), dtype=torch.int64, device=code.device)
        missing = {} if entries is None else {"observed": entries}
        return self.decoder(state, code, **missing)

    def _check(self, data: Sequences) -> None:
        if not isinstance(data, Sequences):
            raise TypeError(f"data: expected pyrohmm.data.Sequences, got {type(data).__name__}")
        check_data(data, self.decoder.event_shape, "decoder")
        if data.allowed is not None:
            raise ValueError(f"data: expected allowed=None, got shape {tuple(data.allowed.shape)}")

    def posterior(self, data: Sequences) -> MarkovChain:
        """q(z), the inferred law of the state paths, of batch shape (N,)."""
        with own_parameters(self):
            return self.infer(data).states

    def log_prob(self, data: Sequences, num_samples: int = 100, *, seed: int = 0) -> Tensor:
        r"""Importance-sampled log-likelihood of each sequence, in nats, the states summed out exactly.

        .. math:: \log \frac1S \sum_s \frac{p(x \mid h^s)\, p(h^s)}{q(h^s)}, \qquad h^s \sim q(h),

        on average a lower bound of log p(x), the tighter the larger S.

        Args:
            data: N sequences.
            num_samples: S.
            seed: of the draws, without any effect on torch's random state.

        Returns:
            (N,).

        Reference:
            Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders".
        """
        count("num_samples", num_samples)
        with own_parameters(self), seeded(seed, data.x.device):
            codes = self.infer(data).codes.mask(data.observed).to_event(1)
            code = codes.rsample((num_samples,))
            prior = self._collapsed(data, self.prior(data))
            law, x = self._observation(data, code)
            weights = law.log_prob(x) + prior.log_prob(code) - codes.log_prob(code)
        return weights.logsumexp(0) - math.log(num_samples)

    def reconstruct(self, data: Sequences, num_samples: int = 100, *, seed: int = 0) -> Tensor:
        """The mean of each observation under q(h), be it missing or not, (N, T, *event); 0 past the length.

        Args:
            data: N sequences.
            num_samples: draws of the codes.
            seed: of the draws, without any effect on torch's random state.

        Raises:
            ValueError: the decoder's law has no mean, as that of symbols.
        """
        count("num_samples", num_samples)
        with own_parameters(self), seeded(seed, data.x.device), torch.no_grad():
            found = self.infer(data)
            # Steps of which nothing was observed have a mixture of Gaussians.
            state = dist.Categorical(found.states.marginals + ~data.valid.unsqueeze(-1)).sample((num_samples,))
            unseen = self.hmm.emission(state).sample()
            code = torch.where(data.observed.unsqueeze(-1), found.codes.sample((num_samples,)), unseen)
            law = self._decoded(code, None)
            if isinstance(law, dist.Categorical):
                raise ValueError("decoder: expected a law that has a mean, got Categorical")
            mean = law.mean.mean(0)
        return mean.masked_fill(~data.valid[(..., *(None,) * (mean.dim() - 2))], 0.0)

    def impute(self, data: Sequences, num_samples: int = 100, *, seed: int = 0) -> Sequences:
        """The same sequences with what was missing replaced by `reconstruct`; arguments and errors as there."""
        if data.mask is None:
            return data
        observed = data.mask[(..., *(None,) * (data.x.dim() - data.mask.dim()))]
        x = torch.where(observed, data.x, self.reconstruct(data, num_samples, seed=seed))
        return Sequences(x, data.lengths, data.inputs, data.labels, None, data.index, data.num_total, data.allowed)

    def simulate(
        self,
        num_sequences: int,
        num_steps: int,
        *,
        lengths: Tensor | None = None,
        inputs: Tensor | None = None,
        seed: int | None = None,
    ) -> Sequences:
        """Draw sequences, with their states as labels; arguments as for `pyrohmm.models.HMM.simulate`."""
        device = self.head.weight.device
        blank = Blank.of(num_sequences, num_steps, lengths, inputs, device)
        x = torch.zeros(num_sequences, num_steps, *self.decoder.event_shape, device=device)
        data = Sequences(x, blank.lengths, inputs=blank.inputs)
        with torch.no_grad(), seeded(seed, device), own_parameters(self):
            sites: Any = poutine.trace(poutine.uncondition(self)).get_trace(data, collapsed=False).nodes
        return Sequences(sites["x"]["value"], data.lengths, inputs=data.inputs, labels=sites["z"]["value"])
