"""Paths of continuous states, of a first-order Markov process whose steps a network may describe."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl


class ContinuousPath(TorchDistribution):
    r"""The law of a path h_1..h_T of vectors, each drawn given the one before it.

    .. math:: p(h_{1:T}) = \prod_{t=1}^T p_t(h_t \mid h_{t-1})

    A prior, if the steps are the transitions of a state space model; a guide (a structured inference network), if they
    look at features of the observations too. Draws are made step by step and are differentiable (reparameterised); the
    density of a given path asks for the laws of all steps at once.

    Args:
        step: `step(previous, t)`, with the vectors before those of the steps `t`, a slice of the time axis: (..., t, D)
            for steps t. It returns a distribution of batch shape (..., t) and event shape (D,) that can be
            reparameterised. It must give the same law whenever it is asked: no dropout inside of it. With a method
            `draw`, from initial (*batch, D) to a path (*batch, T, D), that one makes the draws.
        initial: h_0, the vector before the first step, (D,) or (*batch, D); or the law of h_1, a distribution of event
            shape (D,), and `step` is then asked from the second step on.
        num_steps: T.
        lengths: (*batch), int64, steps of each path, 0 to T; all T if None.
        batch_shape: broadcast with those of `initial` and `lengths`; what `step` returns must broadcast to it.
        independent: whether no step looks at the one before it. `previous` is then None, and all steps are drawn at
            once.
        transforms: functions of torch or Pyro with an inverse that each vector of the path passes through after it
            was drawn (normalising flows); `previous` is then the vector before them. Their modules must give the same
            function whenever they are asked.
        validate_args: whether `log_prob` checks its value; by default as torch and Pyro are set.

    Batch shape: that of the arguments, broadcast. Event shape: (T, D). Values are 0 past the length; what stands there
    is never read, and adds nothing to the log-density.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape that does not fit, or (where validated) lengths outside of 0..T.

    Reference:
        Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space models", AAAI.

    Example:
        >>> import pyro.distributions as dist
        >>> walk = ContinuousPath(
        ...     lambda h, t: dist.Normal(h, 0.1).to_event(1), torch.zeros(2), 5, lengths=torch.tensor([5, 3])
        ... )
        >>> path = walk.rsample()
        >>> path.shape, path[1, 3:].tolist()
        (torch.Size([2, 5, 2]), [[0.0, 0.0], [0.0, 0.0]])
        >>> walk.log_prob(torch.zeros(5, 2))
        tensor([13.8365,  8.3019])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    support = constraints.independent(constraints.real, 2)  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self,
        step: Any,
        initial: Tensor | Distribution,
        num_steps: int,
        *,
        lengths: Tensor | None = None,
        batch_shape: Sequence[int] = (),
        independent: bool = False,
        transforms: Sequence[Any] = (),
        validate_args: bool | None = None,
    ):
        if not callable(step):
            raise TypeError(f"step: expected a callable, got {type(step).__name__}")
        if not isinstance(initial, Tensor | Distribution):
            raise TypeError(f"initial: expected a tensor or a distribution, got {type(initial).__name__}")
        event = initial.event_shape if isinstance(initial, Distribution) else initial.shape[-1:]
        if len(event) != 1:
            raise ValueError(f"initial: expected vectors, of shape (..., D), got event shape {tuple(event)}")
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps: expected an int of at least 1, got {num_steps!r}")
        if independent and isinstance(initial, Distribution):
            raise ValueError("initial: expected a tensor since no step looks at another, got a distribution")
        shape = initial.batch_shape if isinstance(initial, Distribution) else initial.shape[:-1]
        if lengths is not None:
            if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
                raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
            shape = torch.broadcast_shapes(shape, lengths.shape)
        shape = torch.broadcast_shapes(shape, torch.Size(batch_shape))
        self.step, self.initial, self.lengths = step, initial, lengths
        self.num_steps, self.independent_steps, self.transforms = num_steps, independent, tuple(transforms)
        # The path drawn last, its version, and what it was before the transforms, whose inverses may be slow.
        self._drawn: Any = None, 0, None
        super().__init__(shape, torch.Size((num_steps, *event)), validate_args=validate_args)
        if self._validate_args and lengths is not None and not ((lengths >= 0) & (lengths <= num_steps)).all():
            raise ValueError(f"lengths: expected 0 to {num_steps}, got {lengths.tolist()}")

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ContinuousPath":
        """The same law with a larger batch shape."""
        new = ContinuousPath(
            self.step,
            self.initial,
            self.num_steps,
            lengths=self.lengths,
            batch_shape=batch_shape,
            independent=self.independent_steps,
            transforms=self.transforms,
            validate_args=False,
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw paths, (*sample_shape, *batch_shape, T, D), 0 past the length."""
        shape = torch.Size(sample_shape) + self.batch_shape
        if self.independent_steps:
            base = _draw(self.step(None, slice(0, self.num_steps)), (*shape, self.num_steps))
        elif isinstance(self.initial, Tensor) and (draw := getattr(self.step, "draw", None)):
            base = draw(self.initial.expand(*shape, -1))
        else:
            steps, first = [], 0
            if isinstance(self.initial, Distribution):
                steps, first = [_draw(self.initial, shape).unsqueeze(-2)], 1
                previous = steps[0]
            else:
                previous = self.initial.unsqueeze(-2).expand(*shape, 1, -1)
            for t in range(first, self.num_steps):
                previous = _draw(self.step(previous, slice(t, t + 1)), (*shape, 1))
                steps.append(previous)
            base = torch.cat(steps, -2)
        value = base
        for transform in self.transforms:
            value = transform(value)
        if self.lengths is not None:
            value = torch.where(self._valid.unsqueeze(-1), value, 0.0)
        self._drawn = value, _version(value), base
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of paths (..., T, D), in nats; the laws of all steps are asked for at once.

        Raises:
            ValueError: a shape that does not fit, or (where validated) a number within the length that is not finite.
        """
        return self.log_probs(value).sum(-1)

    def log_probs(self, value: Tensor) -> Tensor:
        """The log-density of each step given the one before it, (..., T), 0 past the length.

        >>> import pyro.distributions as dist
        >>> walk = ContinuousPath(lambda previous, t: dist.Normal(previous, 0.1).to_event(1), torch.zeros(1), 3)
        >>> walk.log_probs(torch.tensor([[0.0], [0.1], [0.1]]))
        tensor([1.3836, 0.8836, 1.3836])
        """
        base, log_det = self._untransformed(value)
        laws = self._laws(base)
        values = [base]
        if isinstance(self.initial, Distribution):
            values = [base[..., 0, :], base[..., 1:, :]][: len(laws)]
        terms = [law.log_prob(x) for law, x in zip(laws, values, strict=True)]
        return self._by_step(terms, base.shape[:-2], log_det)

    @property
    def _valid(self) -> Tensor:
        """True at steps within the length, (*batch, T)."""
        assert self.lengths is not None
        return torch.arange(self.num_steps, device=self.lengths.device) < self.lengths.unsqueeze(-1)

    def _laws(self, base: Tensor) -> list[Any]:
        """The law of the first step, if it is given, and that of all others at once."""
        if self.independent_steps:
            return [self.step(None, slice(0, self.num_steps))]
        before = base[..., :-1, :]
        if isinstance(self.initial, Distribution):
            rest = slice(1, self.num_steps)
            return [self.initial, *([self.step(before, rest)] if self.num_steps > 1 else [])]
        lead = torch.broadcast_shapes(self.initial.shape[:-1], before.shape[:-2])
        start = self.initial.unsqueeze(-2).expand(*lead, 1, -1)
        return [self.step(torch.cat([start, before.expand(*lead, -1, -1)], -2), slice(0, self.num_steps))]

    def _by_step(self, terms: list[Tensor], lead: torch.Size, less: Any = 0.0) -> Tensor:
        """What was computed for each of `_laws`, as one number a step, 0 past the length."""
        if isinstance(self.initial, Distribution):
            terms = [terms[0].unsqueeze(-1), *terms[1:]]
        shape = (*torch.broadcast_shapes(self.batch_shape, lead), -1)
        result = torch.cat([term.expand(shape) for term in terms], -1) - less
        return result if self.lengths is None else torch.where(self._valid, result, 0.0)

    def _untransformed(self, value: Tensor) -> tuple[Tensor, Any]:
        """The path before the transforms, and the log-determinant of each step."""
        if value.shape[-2:] != self.event_shape:
            expected = f"shape (..., {self.num_steps}, {self.event_shape[-1]})"
            raise ValueError(f"value: expected {expected}, got {tuple(value.shape)}")
        drawn, version, base = self._drawn
        # Unless somebody has written into it since.
        if value is not drawn or _version(value) != version:
            if self.lengths is not None:
                value = torch.where(self._valid.unsqueeze(-1), value, 0.0)
            base = value
            for transform in reversed(self.transforms):
                base = transform.inv(base)
        if self._validate_args:
            self._validate_sample(value)
        states = [base]
        for transform in self.transforms:
            states.append(transform(states[-1]))
        pairs = zip(self.transforms, states[:-1], states[1:], strict=True)
        return base, sum(transform.log_abs_det_jacobian(x, y) for transform, x, y in pairs)


@register_kl(ContinuousPath, ContinuousPath)
def _kl_along_the_last_draw(q: ContinuousPath, p: ContinuousPath) -> Tensor:
    r"""KL(q || p), estimated by the path that was drawn last from q, or by a new one.

    .. math:: \sum_t \mathrm{KL}\big(q_t(\cdot \mid h_{t-1}) \,\|\, p_t(\cdot \mid h_{t-1})\big), \qquad h \sim q

    Its expectation is the divergence. It varies less than log q(h) - log p(h), which is taken where a step's divergence
    is not known in closed form, or paths are transformed. Both paths must have the same lengths.
    """
    drawn, version, _ = q._drawn
    value = q.rsample() if drawn is None or _version(drawn) != version else drawn
    alike = isinstance(q.initial, Distribution) == isinstance(p.initial, Distribution)
    if alike and not q.transforms and not p.transforms:
        pairs = zip(q._laws(value), p._laws(value), strict=True)
        # Where torch knows no divergence it says so.
        with suppress(NotImplementedError):
            return q._by_step([kl_divergence(*pair) for pair in pairs], value.shape[:-2]).sum(-1)
    return q.log_prob(value) - p.log_prob(value)


def _draw(law: Any, batch_shape: Sequence[int]) -> Tensor:
    """One draw for each entry of the batch, also where the law is the same for some of them."""
    batch_shape = torch.Size(batch_shape)
    return (law if law.batch_shape == batch_shape else law.expand(batch_shape)).rsample()


def _version(value: Tensor) -> int:
    """How often a tensor was written into, as far as torch tells."""
    return 0 if value.is_inference() else value._version
