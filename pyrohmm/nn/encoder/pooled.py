"""From the features of an encoder to the law of a vector of numbers, one for each sequence."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor

from pyrohmm.nn._common import count, mlp
from pyrohmm.nn.encoder.encoder import Encoder

COVARIANCES = ("diag", "full")


class PooledEncoder(PyroModule):
    r"""A Gaussian law q(u | x) of a vector u for each sequence x, from a network that reads the sequence.

    .. math::
        q(u \mid x) = \mathrm{Normal}\Big(m(g),\; S(g) S(g)^\top\Big), \qquad
        g = \Big[\frac{1}{T} \sum_{t \le T} f_t;\; \log(1 + n)\Big]

    with features f = encoder(x), the number n of steps observed, which tells how much is known, and a network with one
    hidden tanh layer for m and S; S is diagonal, or lower triangular, with a positive diagonal.

    Args:
        dim: L, numbers in u.
        encoder: from (N, T, *event) to features (N, T, H); see `Encoder`.
        covariance: "diag" (entries of u independent of each other given x) or "full".
        generator: source of the random start; torch's global one if None.

    Raises:
        TypeError, ValueError: a size that is no positive int, an `encoder` that is none, another `covariance`.

    Reference:
        Kingma and Welling (2014), "Auto-encoding variational Bayes".

    >>> from pyrohmm.nn import StepEncoder
    >>> law = PooledEncoder(2, StepEncoder(3, 8), covariance="full")(torch.randn(4, 5, 3), torch.tensor([5, 1, 3, 2]))
    >>> law.batch_shape, law.event_shape
    (torch.Size([4]), torch.Size([2]))
    """

    def __init__(self, dim: int, encoder: Encoder, covariance: str = "diag", *, generator: Generator | None = None):
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise TypeError(f"encoder: expected a pyrohmm.nn.Encoder, got {type(encoder).__name__}")
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance: expected one of {COVARIANCES}, got {covariance!r}")
        self.dim = count("dim", dim)
        self.encoder = encoder
        self.covariance = covariance
        below = dim * (dim - 1) // 2 if covariance == "full" else 0
        hidden = encoder.num_features
        self.net = mlp(hidden + 1, hidden, 2 * dim + below, generator)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        inputs: Tensor | None = None,
        keepdim: bool = False,
    ) -> TorchDistributionMixin:
        """The law of u.

        Args:
            x: as for `Encoder`, like the next three.
            lengths: (N,).
            observed: (N, T), or the shape of x.
            inputs: (N, T, C).
            keepdim: whether the axis of time stays, with size 1.

        Returns:
            A distribution of batch shape (N,), or (N, 1) with `keepdim`, and event shape (L,): `Normal` with
            `to_event(1)`, or `MultivariateNormal`.

        Raises:
            ValueError: as for `Encoder`.
        """
        # (N, T, H), 0 past the length.
        features = self.encoder(x, lengths, observed=observed, inputs=inputs)
        num_sequences, num_steps = x.shape[:2]
        if lengths is None:
            lengths = torch.full((num_sequences,), num_steps, device=x.device)
        seen = torch.arange(num_steps, device=x.device) < lengths.unsqueeze(-1)
        if observed is not None:
            seen = seen & (observed if observed.dim() == 2 else observed.flatten(2).any(-1))
        mean = features.sum(1) / lengths.clamp(min=1).unsqueeze(-1)
        known = seen.sum(1, keepdim=True).to(mean.dtype).log1p()
        params = self.net(torch.cat([mean, known], -1))
        if keepdim:
            params = params.unsqueeze(1)
        loc, log_scale, below = params.split([self.dim, self.dim, params.shape[-1] - 2 * self.dim], -1)
        if self.covariance == "diag":
            return dist.Normal(loc, log_scale.exp()).to_event(1)
        root = log_scale.exp().diag_embed()
        root[(..., *torch.tril_indices(self.dim, self.dim, -1, device=x.device))] = below
        return dist.MultivariateNormal(loc, scale_tril=root)
