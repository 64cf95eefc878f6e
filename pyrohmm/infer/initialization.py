"""Where a fit begins: emissions from clusters of the observations."""

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy
import torch
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.infer.maximization import PARTS, closed_parts, collect
from pyrohmm.models import HMM
from pyrohmm.models.hmm import Potentials
from pyrohmm.models.isolation import seeded
from pyrohmm.nn.emission.gaussian import middle

Method = Literal["kmeans", "random"]

# Steps that are clustered; the others are put to the nearest centre by "kmeans", and left out by "random".
_MOST_STEPS = 20_000
# The part of each step's weight that is spread over all states: a cluster without a symbol must not rule it out.
_SPREAD = 0.1


def initialize(model: HMM, data: Sequences, method: Method = "kmeans", seed: int = 0) -> None:
    """Set the emission to what clusters of the observations have: one M-step in which each cluster is a state.

    The initial law and the transitions stay as they are.

    Args:
        model: its emission must have a closed M-step.
        data: the sequences.
        method: "kmeans" (k-means++ seeding and 20 of Lloyd's iterations), or "random" (seeding alone), for starts that
            differ more.
        seed: of the clustering.

    Raises:
        ValueError: the emission has no closed M-step, or `method` is another one.

    Reference:
        Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding".

    Example:
        >>> from pyrohmm.nn import GaussianEmission
        >>> model = HMM(GaussianEmission(2, 1))
        >>> initialize(model, Sequences(torch.tensor([[[0.0], [0.1], [9.0], [9.1]]])))
        >>> sorted(model.emission.loc.flatten().round().tolist())
        [0.0, 9.0]
    """
    if method not in ("kmeans", "random"):
        raise ValueError(f"initialization: expected 'kmeans', 'random' or None, got {method!r}")
    emission = model.emission
    if not getattr(emission, "closed_form", False):
        raise ValueError(
            f"initialization: expected None since {type(emission).__name__} has no closed M-step, got {method!r}"
        )
    _put_clusters(model, data, _features(model, data), method, seed)


def _put_clusters(model: HMM, data: Sequences, features: np.ndarray, method: Method, seed: int) -> None:
    """`initialize`, given the features of the observed steps, which are the same for all models of a kind."""
    rows, clusters = _clusters(features, model.num_states, method, seed)
    weights = torch.full((len(clusters), model.num_states), _SPREAD / model.num_states, dtype=torch.float64)
    weights[torch.arange(len(clusters)), clusters] += 1 - _SPREAD
    every = data.x.new_zeros(data.observed.shape + (model.num_states,), dtype=torch.float64)
    every[tuple(places[rows] for places in data.observed.nonzero(as_tuple=True))] = weights.to(every.device)
    model.emission.maximize(collect(model, ["emission"], data, Potentials(None, None, every))["emission"])


def starts(model: HMM, data: Sequences, restarts: int, initialization: Method | None, seed: int) -> list[HMM]:
    """The models that are fitted from different starts: copies, or the one itself if there is no other."""
    first = model if restarts == 1 else copy.deepcopy(model)
    # Sums of squares are about a point among the data.
    if hasattr(first.emission, "prepare"):
        first.emission.prepare(data.x[data.observed], None if data.entries is None else data.entries[data.observed])
    others = [copy.deepcopy(first) for _ in range(restarts - 1)]
    if initialization is not None:
        initialize(first, data, initialization, seed)
    if not others:
        return [first]
    closed = closed_parts(model)
    features = _features(model, data) if initialization or "emission" in closed else None
    for i, some in enumerate(others, 1):
        if features is not None:
            _put_clusters(some, data, features, initialization or "random", seed + i)
        if initialization is None:
            _redraw(some, [name for name in PARTS if name not in closed], data.x.device, seed + i)
    return [first, *others]


def _redraw(model: HMM, names: Sequence[str], device: torch.device, seed: int) -> None:
    """Draw parts anew: layers as torch draws them, other parameters get standard normal noise of half the size."""
    with seeded(seed, device), torch.no_grad():
        for name in names:
            for module in getattr(model, name).modules():
                own = list(module.parameters(recurse=False))
                reset = getattr(module, "reset_parameters", None)
                if callable(reset) and all(parameter.requires_grad for parameter in own):
                    reset()
                    continue
                for parameter in own:
                    if parameter.requires_grad:
                        parameter.add_(0.5 * torch.randn_like(parameter))


def _features(model: HMM, data: Sequences) -> np.ndarray:
    """Those of the observed steps, (M, F), of unit variance, with the mean at entries that are missing."""
    features = model.emission.features(data.x[data.observed]).detach().double().cpu()
    entries = data.entries
    if entries is not None and features.shape == (len(features), data.event_shape.numel()):
        seen = entries[data.observed].reshape(features.shape).cpu()
        features = torch.where(seen, features, middle(features, seen))
    spread = features.std(0, correction=0)
    return ((features - features.mean(0)) / torch.where(spread > 0, spread, 1.0)).numpy()


def _clusters(features: np.ndarray, num_clusters: int, method: Method, seed: int) -> tuple[Tensor, Tensor]:
    """Some rows (all, but for "random" starts on many), and the cluster of each."""
    random = np.random.default_rng(seed)
    rows, some = np.arange(len(features)), features
    if len(some) > _MOST_STEPS:
        rows = random.choice(len(some), _MOST_STEPS, replace=False)
        some = some[rows]
    centres = _seeds(some, num_clusters, random)
    if method == "kmeans":
        # A cluster that loses all its rows keeps its centre.
        centres, _ = scipy.cluster.vq.kmeans2(some, centres, iter=20, minit="matrix", missing="warn")
        rows, some = np.arange(len(features)), features
    distances = torch.cdist(torch.from_numpy(some), torch.from_numpy(centres))
    return torch.from_numpy(rows), distances.argmin(-1)


def _seeds(rows: np.ndarray, num_clusters: int, random: np.random.Generator) -> np.ndarray:
    """Rows that are far from each other: each is drawn with its squared distance to the nearest of those before."""
    centres = [rows[random.integers(len(rows))]]
    nearest = ((rows - centres[0]) ** 2).sum(-1)
    for _ in range(1, num_clusters):
        total = nearest.sum()
        # Fewer different rows than clusters: any row will do.
        chances = nearest / total if total > 0 else None
        centres.append(rows[random.choice(len(rows), p=chances)])
        nearest = np.minimum(nearest, ((rows - centres[-1]) ** 2).sum(-1))
    return np.stack(centres)
