"""From the features of an encoder to the law of a vector of numbers, one for each sequence."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.chain import small_linear
from pyrohmm.nn.encoder.encoder import Encoder

COVARIANCES = ("diag", "full")


class PooledEncoder(PyroModule):
    r"""A Gaussian law q(u | x) of a vector u for each sequence x, from a network that reads the sequence.

    As in the posterior of u under a prior Normal(0, I), every step adds to the precision:

    .. math::
        q(u \mid x) = \mathrm{Normal}\Big(P^{-1} \sum_t h(f_t),\; P^{-1}\Big), \qquad
        P = I + \sum_t A(f_t) A(f_t)^\top

    over the steps within the length, with features f = encoder(x), linear h, and linear A: diagonal, or any matrix.
    So the law gets narrower with more steps, also with more than there were in training.

    Args:
        dim: L, numbers in u.
        encoder: from (N, T, *event) to features (N, T, H); see `Encoder`.
        covariance: "diag" (entries of u independent of each other given x) or "full".
        generator: source of the random start; torch's global one if None.

    Raises:
        TypeError, ValueError: a size that is no positive int, an `encoder` that is none, another `covariance`.

    Reference:
        Kingma and Welling (2014), "Auto-encoding variational Bayes"; for the product of a factor from each step
        Bouchacourt, Tomioka and Nowozin (2018), "Multi-level variational autoencoder".

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
        self.linear = small_linear(encoder.num_features, dim, generator)
        self.root = small_linear(encoder.num_features, dim if covariance == "diag" else dim**2, generator)

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
            x, lengths, observed, inputs: as for `Encoder`.
            keepdim: whether the axis of time stays, with size 1.

        Returns:
            A distribution of batch shape (N,), or (N, 1) with `keepdim`, and event shape (L,): `Normal` with
            `to_event(1)`, or `MultivariateNormal`.

        Raises:
            ValueError: as for `Encoder`.
        """
        features = self.encoder(x, lengths, observed=observed, inputs=inputs)
        linear, roots = self.linear(features), self.root(features)
        if lengths is not None:
            valid = (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
            linear, roots = torch.where(valid, linear, 0.0), torch.where(valid, roots, 0.0)
        linear = linear.sum(-2, keepdim=keepdim)
        if self.covariance == "diag":
            precision = 1 + roots.square().sum(-2, keepdim=keepdim)
            return dist.Normal(linear / precision, precision.rsqrt()).to_event(1)
        # The roots of all steps beside each other, (N, L, T L).
        beside = roots.unflatten(-1, (self.dim, self.dim)).transpose(-3, -2).flatten(-2)
        precision = torch.eye(self.dim, dtype=roots.dtype, device=roots.device) + beside @ beside.mT
        if keepdim:
            precision = precision.unsqueeze(-3)
        loc = torch.cholesky_solve(linear.unsqueeze(-1), torch.linalg.cholesky(precision)).squeeze(-1)
        return dist.MultivariateNormal(loc, precision_matrix=precision)
