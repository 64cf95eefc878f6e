"""The settings of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """What a run depends on, beside the seed.

    Attributes:
        states: K.
        order: of the autoregression; 0 for Gaussian emissions.
        stickiness: weight of the prior on staying in a state: as if so many times the steps of the track had been seen
            to stay, in each state; 0 for no prior.
        steps: of EM, at most.
        restarts: fits from different starts, of which the most probable is kept.
    """

    states: int = 3
    order: int = 1
    stickiness: float = 1.0
    steps: int = 100
    restarts: int = 5

    @property
    def name(self) -> str:
        """Of the file of results."""
        return f"order{self.order}-states{self.states}-sticky{self.stickiness:g}"


# The settings among which BIC chooses.
CANDIDATES = [Config(states=states, order=order) for states in (2, 3, 4, 5) for order in (0, 1, 2)]

# What the prior on staying does.
WEIGHTS = [Config(stickiness=stickiness) for stickiness in (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)]

# The chosen one, and the same without stickiness, without autoregression, and without both.
TABLE = [Config(), Config(stickiness=0.0), Config(order=0), Config(order=0, stickiness=0.0)]
