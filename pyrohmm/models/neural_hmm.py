"""The hidden Markov model with neural parts."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pyrohmm.models.hmm import HMM


class NeuralHMM(HMM):
    """A hidden Markov model whose parts are networks: of the state, the inputs and the previous observations.

    The same program as `HMM`, with every part given. The parts decide what is neural: `NeuralTransition` makes the
    transitions depend on the inputs, `NeuralEmission` is any network of the state and the inputs,
    `AutoregressiveEmission` sees the previous observations too.

    Args:
        initial: the law of the first state, e.g. `pyrohmm.nn.Initial`.
        transition: the law of the next state, e.g. `pyrohmm.nn.NeuralTransition`.
        emission: the law of an observation, e.g. `pyrohmm.nn.NeuralEmission`.
        guide: a Pyro program of the data that samples the model's latent sites, if it has any. Default: empty.
        use_labels: whether states are known where the data has labels, also in decoding; see `HMM`.

    Raises:
        TypeError, ValueError: as in `HMM`.

    Reference:
        Tran, Bisk, Vaswani, Marcu and Knight (2016), "Unsupervised neural hidden Markov models".

    Example:
        >>> import torch
        >>> from pyrohmm.nn import AutoregressiveEmission, Initial, NeuralTransition
        >>> net = torch.nn.Sequential(torch.nn.Linear(4 + 88, 16), torch.nn.Tanh(), torch.nn.Linear(16, 88))
        >>> model = NeuralHMM(
        ...     initial=Initial(4),
        ...     transition=NeuralTransition(4, context=2),
        ...     emission=AutoregressiveEmission(4, net, "bernoulli", dim=88),
        ... )
        >>> data = model.simulate(3, 5, inputs=torch.zeros(3, 5, 2), seed=0)
        >>> data.x.shape, model.log_prob(data).shape
        (torch.Size([3, 5, 88]), torch.Size([3]))
    """

    def __init__(
        self,
        *,
        initial: nn.Module,
        transition: nn.Module,
        emission: nn.Module,
        guide: Callable[..., Any] | None = None,
        use_labels: bool = False,
    ):
        super().__init__(emission, initial, transition, guide=guide, use_labels=use_labels)
