"""Where the fit of a switching state space model begins."""

from typing import Any

import numpy as np
import pyro.distributions as dist
import scipy
import torch
from torch import Tensor, nn

from pyrohmm.data import Sequences
from pyrohmm.infer.common import check_counts, check_sequences
from pyrohmm.infer.em import fit_em
from pyrohmm.infer.history import History
from pyrohmm.models import HMM, SwitchingSSM
from pyrohmm.models.blank import check_data
from pyrohmm.models.isolation import own_parameters
from pyrohmm.nn import FactorAnalysisEmission, LinearRegressionEmission, Transition
from pyrohmm.nn.switching import raw

# Of the variance of an observed entry, the least part that is noise at first.
_LEAST_NOISE = 1e-3
# As if so many more steps had been seen to stay in each state.
_STAY = 10.0
# Sequences by which the degree of smoothing is chosen.
_MOST_SMOOTHED = 50
# Observations that an emission network is shown at once.
_MOST_STEPS = 5000


def initialize_switching(
    model: SwitchingSSM,
    data: Sequences,
    *,
    restarts: int = 10,
    steps: int = 100,
    emission_steps: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> History:
    r"""Set a switching state space model to a start from which `fit_svi` finds the states.

    1. The path: D factors of the observations, by factor analysis, smoothed so far as their noise goes, over missing
       steps too.
    2. States, their linear dynamics and transitions: a hidden Markov model of the path, an autoregression of order one
       in each state, by `fit_em`; the best of several starts, from clusters of the increments. Networks in the dynamics
       and effects on the transitions start at 0.
    3. The emission: in closed form where it is linear and Gaussian, else the most probable for the path, by Adam.
    4. The guide: proposes the factors at each step by themselves, with their standard deviation.

    All that is as usual for these models (Linderman et al. 2017); without it most fits use one state only.

    Args:
        model: changed in place. Its parts are those of `SwitchingLDS` or `SwitchingNLDS`, or have their attributes.
        data: the sequences to be fitted.
        restarts: starts of the second step.
        steps: of EM, at most.
        emission_steps: of Adam, in the third step.
        seed: of all that is random; torch's global random numbers stay as they are.
        progress: whether to show a progress bar.

    Returns:
        The history of the second step.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or D is more than the number of entries
            of an observation.

    Example:
        >>> from pyrohmm.models import SwitchingLDS
        >>> data = SwitchingLDS(2, 2, 5).simulate(20, 30, seed=0)
        >>> model = SwitchingLDS(2, 2, 5)
        >>> history = initialize_switching(model, data, restarts=2)
        >>> history.num_steps > 1, model.decode(data).shape
        (True, torch.Size([20, 30]))
    """
    if not isinstance(model, SwitchingSSM):
        raise TypeError(f"model: expected a pyrohmm.models.SwitchingSSM, got {type(model).__name__}")
    check_sequences("data", data)
    check_counts(restarts=restarts, steps=steps, emission_steps=emission_steps)
    check_data(data, model.emission.event_shape)
    dim, size = model.dynamics.dim, data.event_shape.numel()
    if dim > size:
        raise ValueError(f"model: expected at most {size} dimensions of the path, like an observation, got {dim}")
    path, loadings, noise = _factor_path(model, data, dim)
    # Of a vector with a standard normal prior, given one observation.
    scale = (1 + (loadings.square() / noise.unsqueeze(-1)).sum(0)).rsqrt()
    for d in range(dim):
        _smooth(path[..., d], data.observed.cpu(), data.lengths.tolist(), float(scale[d] ** 2))
    history = _set_dynamics(model, path, scale, data, restarts, steps, seed, progress)
    _set_emission(model, path, data, loadings, noise, emission_steps, seed)
    with torch.no_grad():
        out: Any = model.combiner.out
        out.weight.mul_(0.1)
        out.bias.copy_(torch.cat([torch.zeros(dim), raw(scale).float()]))
    return history


def _factor_path(model: SwitchingSSM, data: Sequences, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The path (N, T, D), its loadings (P, D) and the variances of the rest (P,) in units of the guide's inputs.

    Sets the guide's units, and the matrix by which it goes from an observation to the path.
    """
    x = data.x.detach().double().cpu().flatten(2)
    rows = data.observed.cpu()
    seen = (torch.ones_like(x, dtype=torch.bool) if data.entries is None else data.entries.cpu()) & rows.unsqueeze(-1)
    weight = seen.double().sum((0, 1)).clamp_min(1)
    centre = torch.where(seen, x, 0.0).sum((0, 1)) / weight
    spread = (torch.where(seen, x - centre, 0.0).square().sum((0, 1)) / weight).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    x = torch.where(seen, (x - centre) / spread, 0.0)
    # Principal components are where factor analysis begins, which knows how noisy each entry is.
    _, values, vectors = torch.linalg.svd(x[rows], full_matrices=False)
    loadings = vectors[:dim].mT * (values[:dim] / max(1, int(rows.sum())) ** 0.5)
    noise = (1 - loadings.square().sum(-1)).clamp_min(_LEAST_NOISE)
    size = x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    start = {"loc": torch.zeros(1, size), "factors": loadings.unsqueeze(0), "scale": noise.sqrt(), "least_scale": 0.03}
    factors = FactorAnalysisEmission(1, size, dim, **start, generator=generator)
    whole = HMM(factors, generator=generator)
    fit_em(whole, Sequences(x.float(), data.lengths.cpu(), mask=seen), steps=50, progress=False)
    loadings, noise = factors.factors.detach()[0].double(), (2 * factors.log_scale.detach()[0].double()).exp()
    # Turned, so that their errors are independent given an observation.
    _, _, turned = torch.linalg.svd(loadings / noise.sqrt().unsqueeze(-1), full_matrices=False)
    loadings = loadings @ turned.mT
    weighted = loadings / noise.unsqueeze(-1)
    precision = torch.eye(dim) + torch.einsum("ntp,pd,pe->ntde", seen.double(), weighted, loadings)
    path = torch.linalg.solve(precision, x @ weighted)
    with torch.no_grad():
        model.centre.copy_(centre)
        model.spread.copy_(spread)
        model.direct.copy_(torch.linalg.solve(torch.eye(dim) + weighted.mT @ loadings, weighted.mT))
    return path, loadings, noise


def _smooth(values: Tensor, known: Tensor, lengths: list[int], variance: float) -> None:
    """Smooth sequences (N, T) in place, over gaps too, so far that what is taken away has the variance of their noise.

    The smoothest sequence by its second differences (Whittaker 1922): without, the noise, which goes back and forth,
    would be what an autoregression with states finds.
    """

    def smoothed(n: int, penalty: float) -> np.ndarray:
        length = lengths[n]
        weight = known[n, :length].double().numpy()
        bands = np.zeros((3, length))
        bands[0] = weight
        for row, factor in enumerate((1.0, -2.0, 1.0)):
            for other in range(row, 3):
                product = factor * (1.0, -2.0, 1.0)[other] * penalty
                bands[other - row, row : length - 2 + row] += product
        return scipy.linalg.solveh_banded(bands, weight * values[n, :length].numpy(), lower=True)

    long = [n for n, length in enumerate(lengths) if int(known[n].sum()) > 2]
    some = long[:_MOST_SMOOTHED]
    low, high = -4.0, 6.0
    for _ in range(15):
        penalty = 10 ** ((low + high) / 2)
        taken = [
            (values[n, : lengths[n]] - torch.from_numpy(smoothed(n, penalty)))[known[n, : lengths[n]]] for n in some
        ]
        if some and float(torch.cat(taken).square().mean()) < variance:
            low = (low + high) / 2
        else:
            high = (low + high) / 2
    for n in long:
        values[n, : lengths[n]] = torch.from_numpy(smoothed(n, 10**low))


def _set_dynamics(
    model: SwitchingSSM,
    path: Tensor,
    scale: Tensor,
    data: Sequences,
    restarts: int,
    steps: int,
    seed: int,
    progress: bool,
) -> History:
    """Fit an autoregression with hidden states to the path."""
    num_states, dim, lengths = model.num_states, path.shape[-1], data.lengths.cpu()
    longer = lengths > 1
    if not longer.any():
        raise ValueError("data: expected sequences of at least two steps, got none")
    before, after, observed = path[longer, :-1], path[longer, 1:], data.observed.cpu()[longer, 1:]
    # Clusters are looked for in the increments: it is by them that the states differ.
    unit = (after - before)[observed].std(0).clamp_min(1e-6)
    pieces = Sequences(((after - before) / unit).float(), lengths[longer] - 1, inputs=before.float(), mask=observed)
    generator = torch.Generator().manual_seed(seed)
    transition = Transition(
        num_states, sticky=3.0, prior=dist.Dirichlet(1 + _STAY * torch.eye(num_states)), generator=generator
    )
    autoregression = HMM(
        LinearRegressionEmission(num_states, dim, dim, generator=generator), transition=transition, generator=generator
    )
    history = fit_em(
        autoregression,
        pieces.as_whole(),
        steps=steps,
        tolerance=1e-5,
        restarts=restarts,
        initialization="kmeans",
        seed=seed,
        progress=progress,
    )
    first = path[:, 0]
    with torch.no_grad():
        dynamics, found = model.dynamics, autoregression.emission
        dynamics.weight.copy_(torch.eye(dim) + unit.unsqueeze(-1) * found.weight)
        dynamics.bias.copy_(unit * found.loc)
        # The guide proposes paths with their noise at first.
        dynamics.raw_scale.copy_(raw(((unit * found.log_scale.exp()).square() + 2 * scale.square()).sqrt()))
        dynamics.initial_loc.copy_(first.mean(0))
        spread = first.std(0, correction=0).clamp_min(0.1)
        dynamics.initial_raw_scale.copy_(raw(spread))
        table = getattr(model.transition, "logits", None)
        if isinstance(table, Tensor) and table.shape == (num_states, num_states):
            table.copy_(transition.log_probs())
    return history


def _set_emission(
    model: SwitchingSSM, path: Tensor, data: Sequences, loadings: Tensor, noise: Tensor, steps: int, seed: int
) -> None:
    """The best emission for the path."""
    emission, centre, spread = model.emission, model.centre.cpu(), model.spread.cpu()
    net: Any = getattr(emission, "net", None)
    if isinstance(net, nn.Sequential) and len(net) == 1 and getattr(emission, "family", None) == "gaussian":
        linear: Any = net[0]
        with torch.no_grad():
            linear.weight.copy_(loadings * spread.unsqueeze(-1))
            linear.bias.copy_(centre)
            emission.raw_scale.copy_(raw(noise.sqrt() * spread))
        return
    rows = data.observed.cpu().flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)[:_MOST_STEPS]].to(data.x.device)
    h = path.flatten(0, 1).to(data.x)[rows]
    x = data.x.flatten(0, 1)[rows]
    entries = None if data.entries is None else data.entries.flatten(0, 1)[rows]
    parameters = [parameter for parameter in emission.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(parameters, lr=0.01)
    with own_parameters(emission):
        for _ in range(steps):
            adam.zero_grad()
            (-emission(h, entries).log_prob(x).mean()).backward()
            adam.step()
    adam.zero_grad()
