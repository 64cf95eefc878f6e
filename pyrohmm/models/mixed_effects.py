"""The hidden Markov model with random effects: a continuous latent vector for each sequence."""

import math
from collections.abc import Callable, Collection
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain
from pyrohmm.models.blank import Blank
from pyrohmm.models.hmm import HMM, Potentials
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.nn import PooledEncoder
from pyrohmm.nn._common import count
from pyrohmm.ops.chain import logsumexp

# Steps, those of padding too and each counted for every particle, in one run of the program by `log_prob`.
_AT_ONCE = 16_384


class MixedEffectsHMM(HMM):
    r"""A hidden Markov model in which each sequence has a continuous latent vector u, its random effects.

    .. math::
        p(x) = \int \mathrm{Normal}(u; 0, I) \sum_{z_{1:T}} p(z_1 \mid c_1, u) \prod_{t>1} p(z_t \mid z_{t-1}, c_t, u)
        \prod_t p(x_t \mid z_t, c_t, u, x_{<t}) \, \mathrm{d}u

    u stands beside the covariates: where a part reads inputs, it reads [c; u], of size C + L, at every step. So any
    part of `pyrohmm.nn` that has a `context` takes it: `RegressionTransition` makes of it random effects on log-odds,
    `LinearRegressionEmission` random effects on means (a person's own level), networks a style vector. Parts without
    context have no random effects. The weights of u are their standard deviations: u itself has unit variance.

    Given u the states are summed out exactly; u is inferred by a guide q(u | x) that is amortised: a network reads the
    sequence. The sites are those of `HMM`, and "u" in the plate "sequences", for `fit_svi` or any other inference by
    Pyro (`fit_em` is not for it). `filter_state` is given [c; u] as its inputs.

    u and its weights are known up to a rotation and signs: with -u and -w all is as before. Where all weights of u are
    0 at the start, as those of `RegressionTransition` and of linear emissions are unless told otherwise, nothing tells
    the guide what to encode; small numbers do better.

    Args:
        emission, initial, transition, use_labels, generator: as for `HMM`.
        encoder: the law q(u | x). It has the size L of u, and C as the `context` of its network if that is to read the
            covariates; otherwise `context` 0.

    Raises:
        TypeError: an `encoder` that is none; as in `HMM`.
        ValueError: as in `HMM`.

    Reference:
        Altman (2007), "Mixed hidden Markov models: an extension of the hidden Markov model to the longitudinal data
        setting"; for the guide Kingma and Welling (2014), "Auto-encoding variational Bayes".

    Example:
        >>> from pyrohmm.nn import LinearRegressionEmission, RegressionTransition, StepEncoder
        >>> model = MixedEffectsHMM(
        ...     LinearRegressionEmission(2, 3, context=1),
        ...     transition=RegressionTransition(2, context=1),
        ...     encoder=PooledEncoder(1, StepEncoder(3, 16)),
        ... )
        >>> data = model.simulate(5, 20, effects=torch.linspace(-1, 1, 5).unsqueeze(-1), seed=0)
        >>> model.random_effects(data).mean.shape, model.log_prob(data).shape
        (torch.Size([5, 1]), torch.Size([5]))
        >>> model.posterior(data).marginals.shape
        torch.Size([5, 20, 2])
    """

    def __init__(
        self,
        emission: nn.Module,
        initial: nn.Module | None = None,
        transition: nn.Module | None = None,
        *,
        encoder: PooledEncoder,
        use_labels: bool = False,
        generator: Generator | None = None,
    ):
        super().__init__(emission, initial, transition, use_labels=use_labels, generator=generator)
        if not isinstance(encoder, PooledEncoder):
            raise TypeError(f"encoder: expected a pyrohmm.nn.PooledEncoder, got {type(encoder).__name__}")
        self.encoder = encoder

    @property
    def num_effects(self) -> int:
        """L, the size of u."""
        return self.encoder.dim

    def _inputs(self, data: Sequences | Blank) -> Callable[[slice], Tensor | None]:
        zeros = next(self.encoder.parameters()).new_zeros(self.num_effects)
        # (N, 1, L): of one step, where there are no covariates, so that nothing is computed for each step again.
        effects: Any = pyro.sample("u", dist.Normal(zeros, 1.0).to_event(1))
        return lambda t: effects if data.inputs is None else _beside(data.inputs[:, t], effects)

    def guide(self, data: Sequences | Blank) -> None:
        """The guide: u from its law q(u | x); nothing where there are no observations."""
        if data.x is not None:
            with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
                pyro.sample("u", self._law(data, keepdim=True))

    def _law(self, data: Sequences, *, keepdim: bool) -> TorchDistributionMixin:
        self._check(data)
        inputs = data.inputs if self.encoder.encoder.context else None
        return self.encoder(data.x, data.lengths, observed=data.mask, inputs=inputs, keepdim=keepdim)

    def random_effects(self, data: Sequences) -> TorchDistributionMixin:
        """The law q(u | x) of the random effects of each sequence.

        Args:
            data: N sequences.

        Returns:
            A Gaussian distribution of batch shape (N,) and event shape (L,): `.mean` and `.stddev` are (N, L).

        Raises:
            ValueError: as in `forward`.

        Example:
            >>> from pyrohmm.nn import LinearRegressionEmission, RecurrentEncoder
            >>> encoder = PooledEncoder(2, RecurrentEncoder(3, 8))
            >>> model = MixedEffectsHMM(LinearRegressionEmission(4, 3, context=2), encoder=encoder)
            >>> model.random_effects(Sequences(torch.zeros(5, 7, 3))).stddev.shape
            torch.Size([5, 2])
        """
        with own_parameters(self):
            return self._law(data, keepdim=False)

    def log_prob(
        self,
        data: Sequences,
        guide: Callable[..., Any] | None = None,
        *,
        num_particles: int = 100,
        seed: int | None = None,
    ) -> Tensor:
        r"""The log-likelihood of each sequence, estimated by importance sampling from the guide, in nats.

        .. math:: \log \frac{1}{S} \sum_{s=1}^S \frac{p(x, u_s)}{q(u_s \mid x)}, \quad u_s \sim q(u \mid x)

        Its expectation is the ELBO for S = 1, grows with S and is never above log p(x). The states are summed out
        exactly in every term. It is differentiable; under `torch.no_grad()` it needs far less memory.
        `pyrohmm.infer.importance_log_prob` also tells how good the estimate is.

        Args:
            data: N sequences.
            guide: a Pyro program of the data that samples "u". Default: the model's own guide.
            num_particles: S.
            seed: of the draws, without any effect on torch's global random numbers. They are used if it is None.

        Returns:
            (N,); -inf for a sequence that is impossible.

        Raises:
            TypeError, ValueError: as in `forward`; `num_particles` that is no int of at least 1, a `guide` without "u".

        Reference:
            Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders".

        Example:
            >>> from pyrohmm.nn import PoissonRegressionEmission, StepEncoder
            >>> encoder = PooledEncoder(1, StepEncoder(2, 8))
            >>> model = MixedEffectsHMM(PoissonRegressionEmission(2, 2, context=1), encoder=encoder)
            >>> data = model.simulate(3, 10, seed=0)
            >>> torch.equal(model.log_prob(data, seed=0), model.log_prob(data, seed=0))
            True
        """
        count("num_particles", num_particles)
        self._check(data)
        rows, at_once = torch.arange(len(data)), max(1, _AT_ONCE // data.x.shape[:2].numel())
        with seeded(seed, data.x.device), self._with_guide(guide) as guide:
            # Each sequence several times in one run, so that any guide can be used.
            weights = [
                self._log_weights(data[rows.repeat(min(at_once, num_particles - done))], guide).reshape(-1, len(data))
                for done in range(0, num_particles, at_once)
            ]
        return logsumexp(torch.cat(weights), 0) - math.log(num_particles)

    def _log_weights(self, data: Sequences, guide: Callable[..., Any]) -> Tensor:
        """log p(x, u) - log q(u | x) of one draw of u for each sequence, (N,)."""
        proposed = poutine.trace(guide).get_trace(data)
        if "u" not in proposed:
            raise ValueError(f"guide: expected a program that samples 'u', got one that samples {list(proposed.nodes)}")
        sites: Any = poutine.trace(poutine.replay(self.model, trace=proposed)).get_trace(data).nodes
        laws: Any = sites["u"]["fn"], proposed.nodes["u"]["fn"]
        prior, law = (fn.log_prob(sites["u"]["value"]) for fn in laws)
        # The factor of the loop, before the scale of a minibatch.
        return sites["time"]["fn"].log_factor.reshape(len(data)) + (prior - law).reshape(len(data))

    def posterior(
        self, data: Sequences, guide: Callable[..., Any] | None = None, *, effects: Tensor | None = None
    ) -> MarkovChain:
        """The law of the state paths given the sequences and their random effects, p(z | x, u).

        Args:
            data: N sequences.
            guide: a Pyro program of the data: u is drawn from it once. Default: u is as `effects` say.
            effects: u, (N, L), or (S, N, L) for S of them. Default: the means of `random_effects`.

        Returns:
            A chain of batch shape (N,), or (S, N). Probabilities that take in how uncertain u is are a mean over draws:
            `model.posterior(data, effects=model.random_effects(data).sample((S,))).marginals.mean(0)`.

        Raises:
            ValueError: as in `forward`; `effects` of another shape, or beside a `guide`.

        Example:
            >>> from pyrohmm.nn import PoissonRegressionEmission, StepEncoder
            >>> encoder = PooledEncoder(1, StepEncoder(2, 8))
            >>> model = MixedEffectsHMM(PoissonRegressionEmission(2, 2, context=1), encoder=encoder)
            >>> data = model.simulate(3, 10, seed=0)
            >>> model.posterior(data).batch_shape, model.posterior(data, effects=torch.randn(5, 3, 1)).batch_shape
            (torch.Size([3]), torch.Size([5, 3]))
        """
        if guide is not None and effects is not None:
            raise ValueError("effects: expected None since there is a guide, got a tensor")
        if guide is None:
            guide = self._given(self.random_effects(data).mean if effects is None else effects, len(data))
        return super().posterior(data, guide)

    def potentials(
        self,
        data: Sequences,
        parts: Collection[str] = ("initial", "transition", "emission"),
        products: Any = None,
        *,
        effects: Tensor | None = None,
    ) -> Potentials:
        """The log-potentials of the state chains given the random effects; see `HMM.potentials`.

        Args:
            data: N sequences.
            parts: as in `HMM.potentials`.
            products: as in `HMM.potentials`.
            effects: u, (N, L).

        Raises:
            ValueError: as in `HMM.potentials`; `effects` missing or of another shape.
        """
        if effects is None:
            raise ValueError(
                "effects: expected the random effects (N, L), got None; the chains of states depend on them. What goes "
                "by the potentials alone, such as fit_em, is not for random effects; use fit_svi"
            )
        effects = self._checked(effects, len(data))
        wide = effects.expand(-1, data.num_steps, -1)
        inputs = wide if data.inputs is None else _beside(data.inputs, wide)
        given = Sequences(
            data.x, data.lengths, inputs, data.labels, data.mask, data.index, data.num_total, data.allowed
        )
        return super().potentials(given, parts, products)

    def simulate(
        self,
        num_sequences: int,
        num_steps: int,
        *,
        lengths: Tensor | None = None,
        inputs: Tensor | None = None,
        effects: Tensor | None = None,
        seed: int | None = None,
        guide: Callable[..., Any] | None = None,
    ) -> Sequences:
        """Draw sequences, with their states as labels; see `HMM.simulate`.

        Args:
            num_sequences: N.
            num_steps: T.
            lengths: as in `HMM.simulate`.
            inputs: (N, T, C), the covariates, without u.
            effects: u of each sequence, (N, L). Default: drawn from Normal(0, I).
            seed: as in `HMM.simulate`.
            guide: a Pyro program that samples "u", which is drawn from it once.

        Raises:
            TypeError, ValueError: as in `HMM.simulate`; `effects` of another shape, or beside a `guide`.

        Example:
            >>> from pyrohmm.nn import PoissonRegressionEmission, StepEncoder
            >>> encoder = PooledEncoder(1, StepEncoder(2, 8))
            >>> model = MixedEffectsHMM(PoissonRegressionEmission(2, 2, context=1), encoder=encoder)
            >>> model.simulate(3, 4, effects=torch.tensor([[-1.0], [0.0], [1.0]]), seed=0)
            Sequences(3 sequences of 4 steps, event_shape=(2,), float32, labels)
        """
        if effects is not None:
            if guide is not None:
                raise ValueError("effects: expected None since there is a guide, got a tensor")
            guide = self._given(effects, num_sequences)
        return super().simulate(num_sequences, num_steps, lengths=lengths, inputs=inputs, seed=seed, guide=guide)

    def _given(self, effects: Tensor, num_sequences: int) -> Callable[..., Any]:
        """A guide that knows u."""
        effects = self._checked(effects, num_sequences)
        return lambda data: pyro.sample("u", dist.Delta(effects, event_dim=1))

    def _checked(self, effects: Tensor, num_sequences: int) -> Tensor:
        """Random effects with an axis of time, (..., N, 1, L), like the model's parameters."""
        expected = (num_sequences, self.num_effects)
        if not isinstance(effects, Tensor) or effects.shape[-2:] != expected or effects.dim() not in (2, 3):
            got = tuple(effects.shape) if isinstance(effects, Tensor) else type(effects).__name__
            raise ValueError(f"effects: expected shape {expected}, got {got}")
        return effects.to(next(self.encoder.parameters())).unsqueeze(-2)


def _beside(inputs: Tensor, effects: Tensor) -> Tensor:
    """[c; u], the batch dimensions broadcast."""
    shape = torch.broadcast_shapes(inputs.shape[:-1], effects.shape[:-1])
    return torch.cat([inputs.expand(*shape, -1), effects.expand(*shape, -1)], -1)
