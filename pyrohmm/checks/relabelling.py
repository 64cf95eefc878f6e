"""The same names for the states in every draw of the parameters."""

import torch
from torch import Tensor

from pyrohmm.models import match_states, overlap

_ROUNDS = 10


def common_labels(states: Tensor, scores: Tensor, num_states: int) -> Tensor:
    """Permutations that make the states of all draws agree, by the steps of the data that they are found in.

    Where priors do not tell states apart, each chain, and each draw, may number them in its own way, and averages over
    draws mean nothing. Draws are matched to a pivot, first the best of them, then what most of the matched draws say,
    until nothing changes. The names are those of the first draw.

    Args:
        states: (S, M), the most probable state of each of M steps in each of S draws, any integers; negative ones are
            unknown.
        scores: (S,), of draws, e.g. log-likelihoods.
        num_states: K.

    Returns:
        (S, K) int64: in draw s the new state k is the old state permutation[s, k].

    Reference:
        Papastamoulis and Iliopoulos (2010), "An artificial allocations based solution to the label switching problem
        in Bayesian analysis of mixtures of distributions".

    Example:
        >>> common_labels(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), torch.tensor([0.0, -1.0]), 2)
        tensor([[0, 1],
                [1, 0]])
    """
    states = states.cpu()
    pivot = states[int(scores.argmax())].long()
    permutations = torch.arange(num_states).expand(len(states), -1)
    for _ in range(_ROUNDS):
        # Of equally good permutations the same one every time: what agrees already stays.
        bonus = 0.5 / num_states * torch.eye(num_states, dtype=torch.float64)
        matched = torch.stack(
            [match_states(overlap(some.long(), pivot, num_states, num_states) + bonus) for some in states]
        )
        if torch.equal(matched, permutations):
            break
        permutations = matched
        # The new name of each old state; an unknown one keeps -1.
        names = torch.nn.functional.pad(permutations.argsort(-1), (0, 1), value=-1)
        named = names.gather(-1, torch.where(states < 0, num_states, states.long()))
        pivot = named.mode(0).values
    # The first draw keeps its names.
    return permutations[:, permutations[0].argsort()]
