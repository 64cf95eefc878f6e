"""The first state as in a chain that has run for ever."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrohmm.nn._relabel import as_permutation
from pyrohmm.nn.part import Part

# Stands for log 0 in sums that must have finite gradients. No sum of log-probabilities comes near it.
_NEVER = -1e30


class StationaryInitial(Part):
    r"""The first state by the stationary law pi of the transitions: pi_j = sum_i pi_i p(z_{t+1} = j | z_t = i).

    For sequences that were cut out of something longer. It has no parameters of its own; its gradient goes to those of
    the transitions, which `fit_em` then maximises by gradients, together with the law of the first states.

    With transitions that read inputs, pi is that of the matrix at the inputs of the first step, as if they had always
    been the same.

    A state that the chain leaves for good (`mask`) has probability 0: a left-to-right chain is all in its last state.
    Where there are several sets of states that are never left, no law is the only one, and that is an error.

    Computed in float64 by elimination without subtractions (Grassmann, Taksar and Heyman 1985, "Regenerative analysis
    and steady state distributions for Markov chains"), in logarithms: small probabilities are as precise as large
    ones, also in chains that hardly ever change. The cost is K^3, as is the memory for a gradient: for up to some
    hundred states.

    Args:
        transition: the transition part of the same model, one of `pyrohmm.nn` or one of your own with a method
            `log_probs(inputs)` and, if edges are forbidden, an attribute `mask`.

    Raises:
        TypeError: `transition` has no method `log_probs`.
        ValueError: its mask has several sets of states that are never left.

    >>> from pyrohmm.models import HMM
    >>> from pyrohmm.nn import PoissonEmission, Transition
    >>> transition = Transition(2)
    >>> _ = transition.maximize({"counts": torch.tensor([[9.0, 1.0], [3.0, 7.0]])})
    >>> initial = StationaryInitial(transition)
    >>> initial.log_probs().exp().detach()
    tensor([0.7500, 0.2500])
    >>> model = HMM(PoissonEmission(2, 1), initial, transition)
    """

    def __init__(self, transition: nn.Module):
        super().__init__()
        if not callable(getattr(transition, "log_probs", None)):
            raise TypeError(
                f"transition: expected a part with a method log_probs(inputs), got {type(transition).__name__}"
            )
        # In a tuple, so that it is not registered: it is a part of the model, with one name, and not a part of this.
        self.depends_on = (transition,)
        recurrent_states(self._mask)

    @property
    def transition(self) -> Any:
        """The transition part whose stationary law this is."""
        return self.depends_on[0]

    @property
    def num_states(self) -> int:
        """K."""
        return self.transition.num_states

    @property
    def _mask(self) -> Tensor | None:
        return getattr(self.transition, "mask", None)

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """log p(z_1 = k), normalised.

        Args:
            inputs: (..., C), of the first step; read only if the transitions read them.

        Returns:
            (..., K), or (K,) if the transitions read no inputs.

        Raises:
            ValueError: as the transitions' `log_probs`.
        """
        log_probs = self.transition.log_probs(inputs)
        states = recurrent_states(self._mask)
        if states is None:
            return stationary_law(log_probs)
        law = stationary_law(log_probs[..., states.unsqueeze(-1), states])
        return law.new_full(log_probs.shape[:-1], -torch.inf).index_copy(-1, states, law)

    def log_probs(self, inputs: Tensor | None = None) -> Tensor:
        """The same as `forward`.

        >>> from pyrohmm.nn import Transition
        >>> round(StationaryInitial(Transition(3)).log_probs().exp().sum().item(), 4)
        1.0
        """
        return self(inputs)

    def log_prior(self) -> Tensor:
        """0: a prior is that of the transitions."""
        return next(self.transition.parameters(), torch.zeros(())).new_zeros(())

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Nothing changes here: the law follows when the transitions are relabelled, as `HMM.relabel` does.

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation.

        >>> from pyrohmm.nn import Transition
        >>> StationaryInitial(Transition(2)).relabel([1, 0])
        """
        as_permutation(permutation, self.num_states)

    @property
    def num_free_parameters(self) -> int:
        """0."""
        return 0


def recurrent_states(mask: Tensor | None) -> Tensor | None:
    """The states that a chain with the edges `mask` (K, K) returns to for ever, (M,) int64; None for all without one.

    Raises:
        ValueError: they are not one set but several, between which there is no way.

    >>> recurrent_states(torch.ones(3, 3).triu().bool())
    tensor([2])
    """
    if mask is None:
        return None
    reach = mask | torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    for _ in range(len(mask).bit_length()):
        # Ways of twice the length.
        reach = (reach.float() @ reach.float()) > 0
    # From wherever it gets to it also comes back.
    states = (~reach | reach.mT).all(-1).nonzero().squeeze(-1)
    if not reach[states.unsqueeze(-1), states].all():
        raise ValueError(
            "transition: expected a mask with one set of states that is never left, since only then there is one "
            f"stationary law, got several, of the states {states.tolist()}"
        )
    return states


def stationary_law(log_probs: Tensor) -> Tensor:
    """log pi of chains in which each state can be reached from each.

    Args:
        log_probs: (..., K, K), [from, to]; -inf is allowed.

    Returns:
        (..., K), in the dtype of `log_probs`, of which rounding errors in it are the only ones.

    >>> stationary_law(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()).exp()
    tensor([0.7500, 0.2500])
    """
    rates = log_probs.double().clamp_min(_NEVER)
    visits = []
    # The chain seen only while in the first n states: what it does in state n is put into the others' edges.
    for n in range(rates.shape[-1] - 1, 0, -1):
        leaving = rates[..., n, :n]
        visits.append(rates[..., :n, n] - leaving.logsumexp(-1, keepdim=True))
        # Not logaddexp: its second derivative is NaN where one of the two is negligible.
        rates = torch.stack([rates[..., :n, :n], visits[-1].unsqueeze(-1) + leaving.unsqueeze(-2)]).logsumexp(0)
    law = rates.new_zeros(rates.shape[:-1])
    for visit in reversed(visits):
        law = torch.cat([law, (law + visit).logsumexp(-1, keepdim=True)], -1)
    return law.log_softmax(-1).to(log_probs.dtype)
