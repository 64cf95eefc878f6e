"""From features of the observations and the vector before to the law of a step of a continuous path."""

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn._unrolled import UnrolledPath
from pyrohmm.nn.dynamics import normal
from pyrohmm.nn.encoder.encoder import built


class Combiner(PyroModule):
    r"""The step of a structured inference network: q(h_t | h_{t-1}, x), from the features of S encoders.

    .. math::
        c_t = \frac{1}{S + 1} \Big(\tanh(W h_{t-1} + b) + \sum_{s=1}^S f^s_t\Big), \qquad
        q = N\big(A c_t + a,\; \mathrm{softplus}(B c_t + d)^2\big)

    With the features of an encoder that runs backward in time it is the network ST-R of Krishnan et al. (h_t is
    independent of the observations before t, given h_{t-1}), with one that runs forward ST-L, with both ST-LR. Without
    the vector before (`mean_field`) the tanh is left out, and the sum divided by S: MF-LR with both directions.

    All that does not depend on the vector before is computed for all steps at once.

    Args:
        dim: D, of the path.
        hidden: H, of the features of one encoder.
        num_sources: S; 2 for the features of `RecurrentEncoder(dim_x, 2 * H, "both")`.
        mean_field: whether steps do not look at the vector before.
        generator: source of the random start; torch's global one if None.

    Attributes:
        initial: the vector before the first step, (D,), a parameter.

    Raises:
        TypeError, ValueError: a size that is no positive int.

    Reference:
        Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space models", AAAI.

    >>> from pyrohmm.nn import RecurrentEncoder
    >>> encoder, combiner = RecurrentEncoder(3, 16, "both"), Combiner(4, 8, num_sources=2)
    >>> step = combiner(encoder(torch.randn(2, 5, 3)))
    >>> step(torch.zeros(2, 1, 4), slice(0, 1)).batch_shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        num_sources: int = 1,
        *,
        mean_field: bool = False,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.dim, self.hidden = count("dim", dim), count("hidden", hidden)
        self.num_sources, self.mean_field = count("num_sources", num_sources), mean_field
        self.before = None if mean_field else built(lambda: nn.Linear(dim, hidden), generator)
        self.out = built(lambda: nn.Linear(hidden, 2 * dim), generator)
        self.initial = nn.Parameter(torch.zeros(dim))

    def forward(self, features: Tensor) -> "CombinerStep":
        """The steps for these features.

        Args:
            features: (..., T, S * H), of the encoders beside each other.

        Returns:
            step(previous, t), with the vectors before (..., t, D) of the steps `t`, a slice of the time axis; None with
            `mean_field`. Its result has batch shape (..., t) and event shape (D,).

        Raises:
            ValueError: features of another size.
        """
        if features.shape[-1] != self.num_sources * self.hidden:
            raise ValueError(
                f"features: expected shape (..., T, {self.num_sources * self.hidden}), got {tuple(features.shape)}"
            )
        parts = self.num_sources + (self.before is not None)
        known = self.out(features.unflatten(-1, (self.num_sources, self.hidden)).sum(-2) / parts)
        return CombinerStep(known, self.before, self.out.weight.mT / parts)


class CombinerStep:
    """The step of a combiner, for given features; see `Combiner.forward`."""

    def __init__(self, known: Tensor, before: nn.Module | None, weight: Tensor):
        self.known, self.before, self.weight = known, before, weight

    def __call__(self, previous: Tensor | None, t: slice) -> TorchDistributionMixin:
        """The law of the steps `t` given the vectors before them."""
        params = self.known[..., t, :]
        if self.before is not None:
            params = params + self.before(previous).tanh() @ self.weight
        return normal(*params.chunk(2, -1))

    def draw(self, start: Tensor) -> Tensor:
        """All steps in turn from the vector before the first, (..., D), to (..., T, D); differentiable once."""
        assert isinstance(self.before, nn.Linear)
        num_steps, width = self.known.shape[-2:]
        known = self.known.expand(*start.shape[:-1], num_steps, width).reshape(-1, num_steps, width).transpose(0, 1)
        noise = torch.randn(num_steps, *start.shape, dtype=start.dtype, device=start.device)
        inputs = start.reshape(known.shape[1], -1), self.before.weight, self.before.bias, self.weight
        path = UnrolledPath.apply(known.contiguous(), *inputs, noise.flatten(1, -2))
        return path.transpose(0, 1).reshape(*start.shape[:-1], num_steps, -1)
