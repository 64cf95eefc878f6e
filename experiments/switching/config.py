"""The settings of a run."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    """What a run depends on, beside its seed.

    Attributes:
        model: "slds", "snlds" (networks in dynamics and emission), or with an "r" before it: transitions that depend on
            the path.
        states: K.
        num_steps: of the drive.
        piece: steps of a sequence; the drive is cut into such pieces.
        test_share: of the pieces, the last ones, that are held out.
        num_entries: of an observation.
        noise: standard deviation of the dynamics.
        observation_noise: standard deviation of an entry.
        data_seed: of the drive.
        steps: of `fit_svi`.
        batch_size: pieces in a minibatch.
        learning_rate: of Adam, at the start; it falls to 0 as a cosine.
        restarts: of the start's EM.
        evenness: weight of the term against states that are not used, falling to 0 in the first half of the steps.
    """

    model: Literal["rslds", "slds", "rsnlds", "snlds"] = "rslds"
    states: int = 4
    num_steps: int = 8000
    piece: int = 100
    test_share: float = 0.25
    num_entries: int = 10
    noise: float = 0.01
    observation_noise: float = 0.1
    data_seed: int = 0
    steps: int = 450
    batch_size: int = 10
    learning_rate: float = 0.01
    restarts: int = 10
    evenness: float = 0.0
