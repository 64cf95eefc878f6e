"""The networks with which a guide draws a path of hidden vectors."""

from collections.abc import Iterable
from typing import Any

from torch import Generator, Tensor

from pyrohmm.distributions import ContinuousPath
from pyrohmm.nn import Combiner, RecurrentEncoder

_DIRECTIONS = {"mean-field": "both", "left-right": "forward", "right-left": "backward", "both": "both"}


def inference_network(
    inference: str, num_entries: int, dim: int, hidden: int, generator: Generator | None
) -> tuple[RecurrentEncoder, Combiner]:
    """What reads the observations, and what makes the next hidden vector of that and the one before.

    Args:
        inference: "mean-field", "left-right", "right-left" or "both".
        num_entries: numbers in an observation.
        dim: of the hidden vectors.
        hidden: size of the recurrent network, in each direction.
        generator: source of the random start; torch's global one if None.

    Raises:
        ValueError: another `inference`.

    Reference:
        Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space models".

    >>> encoder, combiner = inference_network("both", 5, 2, 8, None)
    >>> encoder.direction, encoder.num_features
    ('both', 16)
    """
    if inference not in _DIRECTIONS:
        raise ValueError(f"inference: expected one of {tuple(_DIRECTIONS)}, got {inference!r}")
    direction = _DIRECTIONS[inference]
    sources = 2 if direction == "both" else 1
    encoder = RecurrentEncoder(num_entries, sources * hidden, direction, missing="entries", generator=generator)
    return encoder, Combiner(dim, hidden, sources, mean_field=inference == "mean-field", generator=generator)


def proposed_path(
    combiner: Combiner, step: Any, num_steps: int, lengths: Tensor, transforms: Iterable[Any] = ()
) -> ContinuousPath:
    """The law of the hidden vectors of all steps.

    Args:
        combiner: makes the law of each.
        step: what `combiner` returned for the features, (*batch, T, F).
        num_steps: T.
        lengths: (*batch,), int64.
        transforms: that each vector passes through.

    >>> import torch
    >>> encoder, combiner = inference_network("both", 5, 2, 8, None)
    >>> lengths = torch.tensor([7, 3])
    >>> proposed_path(combiner, combiner(encoder(torch.zeros(2, 7, 5), lengths)), 7, lengths).sample().shape
    torch.Size([2, 7, 2])
    """
    return ContinuousPath(
        step,
        combiner.initial,
        num_steps,
        lengths=lengths,
        independent=combiner.mean_field,
        transforms=list(transforms),
    )
