"""Pyro's plain ELBO, without the questions that make each step wait for the device."""

from collections.abc import Callable
from typing import Any

from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor


class UnreadELBO(Trace_ELBO):
    """`Trace_ELBO` whose `loss_and_grads` returns the loss as a tensor: nothing in it asks the device for a number.

    Sites of a guide that are not reparameterised need a score function. For these Pyro's own estimate is taken, which
    reads the log-density of each site.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 1.0), obs=torch.tensor(0.0))
        >>> UnreadELBO().loss_and_grads(model, lambda: None), pyro.param("loc").grad
        (tensor(2.9189), tensor(2.))
    """

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor | float:
        """Add the gradient of the loss to that of the parameters, and return the loss."""
        total = 0.0
        for traces in self._get_traces(model, guide, args, kwargs):
            loss, surrogate = self._differentiable_loss_particle(*traces)
            total = total + loss / self.num_particles
            if isinstance(surrogate, Tensor) and surrogate.requires_grad:
                (surrogate / self.num_particles).backward(retain_graph=self.retain_graph)
        return total

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Any:
        """The loss, and a surrogate with its gradient."""
        parts = [site["score_parts"] for site in guide_trace.nodes.values() if site["type"] == "sample"]
        if not all(is_identically_zero(part.score_function) for part in parts):
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        log_prob = model_trace.log_prob_sum()
        loss = guide_trace.log_prob_sum() - log_prob
        entropy = sum(part.entropy_term.sum() for part in parts if not is_identically_zero(part.entropy_term))
        return loss.detach() if isinstance(loss, Tensor) else loss, entropy - log_prob
