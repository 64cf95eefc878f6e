"""The track of Linderman et al. (2017): two straights and two turns, driven round and round, seen through noise."""

import math

import torch
from torch import Tensor

from experiments.switching.config import Config
from pyrohmm.data import Sequences

NUM_REGIMES = 4


def turn(angle: float, centre: float) -> tuple[Tensor, Tensor]:
    """Matrix and offset of a rotation about (centre, 0)."""
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = torch.tensor([centre, 0.0])
    return matrix, middle - matrix @ middle


def drive(num_steps: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (T, 2) and regimes (T,): 0 and 1 are the turns on the right and on the left, 2 and 3 the straights.

    A regime is that of the place before: beyond |place| = 2 it is a turn, else the upper or the lower straight.
    """
    straight = torch.eye(2)
    systems = [turn(-math.pi / 24, 2.0), turn(-math.pi / 48, -2.0)]
    systems += [(straight, torch.tensor([0.1, 0.0])), (straight, torch.tensor([-0.25, 0.0]))]
    places, regimes = [torch.tensor([0.0, 1.0])], [2]
    for _ in range(num_steps - 1):
        before = places[-1]
        # To the right along the upper straight, back to the left along the lower one.
        regime = 0 if before[0] > 2 else 1 if before[0] < -2 else 2 if before[1] > 0 else 3
        matrix, offset = systems[regime]
        # The noise would carry the car off in the end: the straights lead back to the height of one.
        pull = torch.tensor([0.0, 0.05 * float(before[1].sign() - before[1])]) if regime > 1 else 0.0
        places.append(matrix @ before + offset + pull + noise * torch.randn(2, generator=generator))
        regimes.append(regime)
    return torch.stack(places), torch.tensor(regimes)


def track(config: Config) -> tuple[Sequences, Tensor]:
    """Observations x = C place + d + noise, cut into pieces, with regimes as labels, and the places (N, T, 2)."""
    generator = torch.Generator().manual_seed(config.data_seed)
    places, regimes = drive(config.num_steps, config.noise, generator)
    loadings = torch.randn(config.num_entries, 2, generator=generator)
    offset = torch.randn(config.num_entries, generator=generator)
    noise = config.observation_noise * torch.randn(len(places), config.num_entries, generator=generator)
    x = places @ loadings.mT + offset + noise
    pieces = [value.unflatten(0, (-1, config.piece)) for value in (x, regimes, places)]
    return Sequences(pieces[0], labels=pieces[1]), pieces[2]
