"""The M-step: parts with a closed form by their statistics, all others by gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.infer.common import mode
from pyrohmm.models import HMM
from pyrohmm.models.hmm import Potentials
from pyrohmm.models.lags import lags_of
from pyrohmm.nn.part import Events, Part, Statistics, add_up

PARTS = ("initial", "transition", "emission")


def closed_parts(model: HMM) -> list[str]:
    """The names of the parts that have a closed M-step and share no parameter with one that has none."""
    parts: dict[str, Any] = dict(zip(PARTS, model.parts, strict=True))
    closed = [name for name, part in parts.items() if isinstance(part, Part) and part.closed_form]
    others = {
        id(parameter)
        for name, part in parts.items()
        if name not in closed
        for module in (part, *getattr(part, "depends_on", ()))
        for parameter in module.parameters()
    }
    return [name for name in closed if not any(id(p) in others for p in parts[name].parameters())]


def collect(
    model: HMM, names: Sequence[str], data: Sequences, weights: Potentials, products: Any = None
) -> dict[str, Statistics]:
    """The expected statistics of some parts.

    Args:
        model: the model.
        names: of the parts.
        data: N sequences.
        weights: those of `expect`.
        products: what `emission.products` made of all steps, if it is at hand.

    Returns:
        name -> statistics.
    """
    found: dict[str, Statistics] = {}
    inputs = data.inputs
    if "initial" in names:
        first = None if inputs is None else inputs[:, 0]
        found["initial"] = model.initial.expected_statistics(_own(weights.initial, 1), first)
    if "transition" in names:
        later = None if inputs is None else inputs[:, 1:]
        found["transition"] = model.transition.expected_statistics(_own(weights.transition, 2), later)
    if "emission" in names:
        observed = weights.observation
        if data.mask is not None:
            observed = observed * data.observed.unsqueeze(-1)
        if products is not None:
            found["emission"] = model.emission.statistics_of_products(products, observed.flatten(-3, -2))
            return found
        steps = [
            None if value is None else value.flatten(0, 1)
            for value in (inputs, lags_of(model.emission, data), data.entries)
        ]
        found["emission"] = model.emission.expected_statistics(data.x.flatten(0, 1), observed.flatten(-3, -2), *steps)
    return found


def _own(weights: Tensor, dims: int) -> Tensor:
    """The weights of a table of several models, (R, 1, ..., K), as (R, ..., K); any other as they are."""
    lead = weights.dim() - dims
    return weights.flatten(0, lead - 1) if lead and weights.shape[1:lead].numel() == 1 else weights


def accumulate(total: dict[str, Statistics], more: dict[str, Statistics]) -> None:
    """Add the statistics of parts to others, in place."""
    for name, statistics in more.items():
        add_up(total.setdefault(name, {}), statistics)


def maximize(model: HMM, statistics: dict[str, Statistics]) -> dict[str, Events]:
    """Maximise the parts that have statistics, and tell what they met."""
    return {name: getattr(model, name).maximize(value) for name, value in statistics.items()}


class GradientAscent:
    r"""The M-step of parts without a closed form: some steps of Adam on the expected log-probability.

    .. math:: Q(\theta) = \sum_k w_k \log p_k(\theta) + \log p(\theta)

    with the log-potentials :math:`\log p_k` and the weights of the E-step. At the parameters of the E-step its gradient
    is that of the log-likelihood, so a part that is not at a stationary point improves it (generalised EM: Dempster,
    Laird and Rubin 1977; Neal and Hinton 1998).

    Args:
        model: the model.
        names: of the parts.
        steps: of Adam in each M-step.
        learning_rate: of Adam.
    """

    def __init__(self, model: HMM, names: Sequence[str], steps: int, learning_rate: float):
        self.model, self.names, self.steps, self.learning_rate = model, list(names), steps, learning_rate
        parts = nn.ModuleList([getattr(model, name) for name in self.names])
        self.parameters = [parameter for parameter in parts.parameters() if parameter.requires_grad]
        self.parts = parts
        self.restart()

    def restart(self) -> None:
        """Forget what Adam knows."""
        self.adam = torch.optim.Adam(self.parameters, lr=self.learning_rate) if self.parameters else None

    def objective(self, data: Sequences, weights: Potentials, scale: float = 1.0) -> Tensor:
        """Q of a batch, its data counted `scale` times."""
        potentials = self.model.potentials(data, self.names)
        expected = [
            # Not a product with -inf, for what is forbidden and has no weight.
            (torch.where(weight > 0, logits, 0.0) * weight).sum()
            for logits, weight in zip(potentials, weights, strict=True)
            if logits is not None
        ]
        prior = [part.log_prior() for part in self.parts if isinstance(part, Part)]
        return scale * torch.stack(expected).sum() + sum(prior)

    def __call__(self, data: Sequences, weights: Potentials, *, scale: float = 1.0, guard: bool = True) -> bool:
        """Make the steps.

        Args:
            data: the sequences.
            weights: of the E-step.
            scale: how many times the data count.
            guard: whether to take the steps back, and to halve the learning rate, if Q fell; as is always done if a
                number is not finite.

        Returns:
            whether they were kept.
        """
        if self.adam is None:
            return True
        size = max(1.0, scale * data.num_observed)
        before = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            old = self.objective(data, weights, scale) if guard else None
        with torch.enable_grad(), mode([self.model], training=True):
            finite = all(self._descend(data, weights, scale, size) for _ in range(self.steps))
        self.adam.zero_grad()
        with torch.no_grad():
            if finite and (old is None or self.objective(data, weights, scale) >= old):
                return True
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)
        self.learning_rate /= 2
        self.restart()
        return False

    def _descend(self, data: Sequences, weights: Potentials, scale: float, size: float) -> bool:
        """One step of Adam on -Q / size, whose size does not depend on the number of steps; whether all is finite."""
        assert self.adam is not None
        self.adam.zero_grad()
        loss = -self.objective(data, weights, scale) / size
        loss.backward()
        self.adam.step()
        return bool(loss.isfinite()) and all(bool(p.isfinite().all()) for p in self.parameters)

    def state(self) -> dict[str, Any]:
        """All that `load` needs."""
        return {"learning_rate": self.learning_rate, "adam": None if self.adam is None else self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` told."""
        self.learning_rate = state["learning_rate"]
        self.restart()
        if self.adam is not None:
            self.adam.load_state_dict(state["adam"])
