"""A guide whose states are a chain, with potentials from a network."""

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain
from pyrohmm.models.isolation import own_parameters
from pyrohmm.nn import ChainEncoder


class ChainGuide(PyroModule):
    r"""The guide q(z | x) of a path site: a Markov chain whose potentials a network makes of the sequence.

    A Pyro program of `Sequences`, for a model that samples a path, (N, 1, T), in the plate "sequences" at -2, as below.
    It is fitted by `pyrohmm.infer.PathELBO`, which sums over the paths; with `Trace_ELBO` they are drawn.

    Args:
        encoder: makes the potentials, of K states.
        site: the name of the path site.

    Raises:
        TypeError: `encoder` is no `ChainEncoder`.

    Reference:
        Johnson et al. (2016), "Composing graphical models with neural networks".

    Example:
        >>> import torch, pyro.distributions as dist
        >>> import pyrohmm
        >>> from pyrohmm.nn import RecurrentEncoder
        >>> def model(data):
        ...     prior = MarkovChain(
        ...         torch.zeros(2), torch.eye(2), lengths=data.lengths.unsqueeze(-1), num_steps=data.num_steps
        ...     )
        ...     loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        ...     with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
        ...         z = pyro.sample("z", prior)[..., 0, :].clamp(min=0)  # -1 past the length, if it is drawn
        ...         with pyro.plate("time", data.num_steps, dim=-1), pyro.poutine.mask(mask=data.observed):
        ...             pyro.sample("x", dist.Normal(loc[z], 1.0), obs=data.x)
        >>> data = Sequences(torch.randn(6, 5), torch.tensor([5, 2, 1, 5, 4, 3]))
        >>> guide = ChainGuide(ChainEncoder(2, RecurrentEncoder(1, 8)))
        >>> loss = pyrohmm.infer.PathELBO()
        >>> history = pyrohmm.fit_svi(model, data, guide, loss=loss, steps=10, batch_size=3, progress=False)
        >>> guide.posterior(data).marginals.shape
        torch.Size([6, 5, 2])
    """

    def __init__(self, encoder: ChainEncoder, *, site: str = "z"):
        super().__init__()
        if not isinstance(encoder, ChainEncoder):
            raise TypeError(f"encoder: expected a pyrohmm.nn.ChainEncoder, got {type(encoder).__name__}")
        self.encoder = encoder
        self.site = site

    def forward(self, data: Sequences) -> Tensor:
        """The Pyro program.

        Args:
            data: N sequences.

        Returns:
            The path, (N, 1, T), -1 past the length.
        """
        chain = self._chain(data)
        # Steps have the dimension right of that of the sequences.
        unary, transition = chain.observation_logits, chain.transition_logits
        assert unary is not None
        transition = transition.unsqueeze(1) if transition.dim() > 3 else transition
        chain = MarkovChain(chain.initial_logits, transition, unary.unsqueeze(1), lengths=data.lengths.unsqueeze(-1))
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            return pyro.sample(self.site, chain)

    def posterior(self, data: Sequences) -> MarkovChain:
        """The law q(z | x) of the paths of N sequences, of batch shape (N,)."""
        with own_parameters(self):
            return self._chain(data)

    def _chain(self, data: Sequences) -> MarkovChain:
        logits = self.encoder(data.x, data.lengths, observed=data.mask, inputs=data.inputs)
        return MarkovChain.from_potentials(*logits, lengths=data.lengths)
