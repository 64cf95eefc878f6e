"""The settings of a run of hidden Markov models; `config_for` gives those of the committed table."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["hmm", "arhmm", "nnhmm"]


@dataclass(frozen=True)
class Config:
    """What a run depends on, beside the seed.

    Attributes:
        model: "hmm", "arhmm" or "nnhmm", see `model.py`.
        dataset: a name of `pyrohmm.data.load_polyphony`.
        states: K.
        epochs: passes over the training set, at most.
        batch_size: sequences in a minibatch.
        learning_rate: of Adam, at the start.
        schedule: of the learning rate, over all epochs: "exponential" (down to a hundredth) or "cosine" (down to 0).
        contrast: 0 to 1, how far the states' key probabilities start from the mean chord, towards a random chord.
        hidden: units of the network of "nnhmm".
        dropout: of these units.
        patience: stop after so many epochs without a better validation loss.
    """

    model: Kind = "hmm"
    dataset: str = "jsb"
    states: int = 16
    epochs: int = 30
    batch_size: int = 10
    learning_rate: float = 0.3
    schedule: Literal["exponential", "cosine"] = "exponential"
    contrast: float = 0.2
    hidden: int = 48
    dropout: float = 0.2
    patience: int = 10


def config_for(model: Kind = "hmm", states: int | None = None, **settings: Any) -> Config:
    """The settings that suit a model; those given are taken as they are."""
    if states is None:
        states = {"hmm": 16, "arhmm": 16, "nnhmm": 128}[model]
    match model:
        case "hmm":
            # Few states need large steps to leave poor maxima; with them, many states fit the training set too fast.
            suited = {} if states < 64 else {"learning_rate": 0.1, "contrast": 0.5, "patience": 5}
        case "arhmm":
            suited = {"epochs": 20, "batch_size": 20, "learning_rate": 0.1, "schedule": "cosine", "contrast": 0.5}
        case "nnhmm":
            suited = {"epochs": 8, "batch_size": 20, "learning_rate": 0.05, "schedule": "cosine", "contrast": 0.5}
    return Config(model=model, states=states, **{**suited, **settings})
