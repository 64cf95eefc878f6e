"""The features of a track, and the model of them."""

import pyro.distributions as dist
import torch
from torch import Generator, Tensor

from experiments.bee_dance.config import Config
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import GaussianEmission, Initial, LinearAutoregressiveEmission, Transition

FEATURES = ["heading change", "log speed"]


def features(track: Tensor) -> Sequences:
    """Change of heading and log speed of one track (T, 3), each with mean 0 and standard deviation 1, in float64.

    The speed of the first step, which has none before it, is missing.
    """
    track = track.double()
    speed = track[:, :2].diff(dim=0, prepend=track[:1, :2]).norm(dim=-1)
    speed[0] = torch.nan
    # A bee that stands still has a speed of 0, and is not infinitely far from one that hardly moves.
    x = torch.stack([track[:, 2], (speed + 0.2 * speed.nanmedian()).log()], -1)
    seen = x[1:]
    return Sequences.from_list([(x - seen.mean(0)) / seen.std(0)], mask="nan", dtype=torch.float64)


def build(config: Config, num_steps: int, generator: Generator | None = None) -> HMM:
    """The model of a track of so many steps, not fitted."""
    K, D = config.states, len(FEATURES)
    if config.order:
        emission = LinearAutoregressiveEmission(K, D, config.order, covariance="full", generator=generator)
    else:
        emission = GaussianEmission(K, D, covariance="full", generator=generator)
    weight = config.stickiness * num_steps
    prior = dist.Dirichlet(1 + weight * torch.eye(K)) if weight else None
    transition = Transition(K, sticky=3.0, prior=prior, generator=generator)
    return HMM(emission, Initial(K, generator=generator), transition).double()
