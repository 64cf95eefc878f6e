"""To ArviZ: draws, likelihoods and predictions of a hidden Markov model, with named dimensions."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm import ops
from pyrohmm.checks.calibration import prior_simulator
from pyrohmm.checks.monte_carlo import check_data, check_number, derived_seed
from pyrohmm.checks.parameter_draws import Draws, given, one, parameter_draws
from pyrohmm.checks.relabelling import common_labels
from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.models.saving import library_version
from pyrohmm.ops.chain import valid_steps
from pyrohmm.program.posterior import trace_given

_STATE_DIMS = ("state", "next_state")

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


def to_inference_data(
    model: Callable[..., Any],
    data: Sequences | tuple[Any, ...],
    draws: Mapping[str, Tensor] | None = None,
    *,
    guide: Callable[..., Any] | None = None,
    num_draws: int = 500,
    paths: bool | None = None,
    align: bool = True,
    posterior_predictive: int | Mapping[str, Tensor] = 100,
    prior: int | Mapping[str, Tensor] = 0,
    observed_data: Mapping[str, Tensor] | None = None,
    constant_data: Mapping[str, Tensor] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    loop: str = "time",
    seed: int = 0,
    progress: bool = True,
) -> Any:
    r"""Everything that ArviZ asks of a fitted model: `arviz.summary`, `loo`, `compare`, `plot_trace` take the result.

    The draws are those of a sampler; or of a guide; or, where the parameters are points, of state paths alone.

    | group | variables (dimensions after chain and draw) |
    |---|---|
    | posterior | the latent sites; "z" (sequence, time), paths from the posterior of the states, -1 past the length |
    | log_likelihood | "x": log p(x_n), one number a sequence (sequence), states summed out, nats |
    | log_predictive | "x": log p(x_t given x_1..t-1), one step ahead (sequence, time), nats |
    | posterior_predictive | sequences drawn with some of the draws (sequence, time, ...) |
    | prior, prior_predictive | draws from the priors |
    | observed_data, constant_data | x; lengths, observed, inputs and labels, if there are any (no draws) |

    **The log-likelihood is one number a sequence, not one a step.** Steps of a sequence depend on each other: what
    `loo` would leave out is predicted from its neighbours on both sides, which know it, and no importance weight of
    pointwise terms makes up for that. Sequences are exchangeable, so leaving out one of them is sound: `loo` then
    estimates how well a new sequence is predicted, and needs many of them. Of a single one, look at `log_predictive`,
    which adds up to the log-likelihood. Of points, every draw has the same likelihood, and `loo` is the plug-in
    log-likelihood, without a penalty for having fitted them. ArviZ 1.x cannot smooth weights that are all equal: give
    its `loo` the `log_weights` (-log of the number of draws) and a `pareto_k` of zeros, and its `compare` the result.

    **Labels.** Chains may number the states differently. With `align` every draw's states are matched to the other
    draws' (by the steps of the data that they are found in, the Hungarian method), and all axes that are called
    "state" or "next_state" are put into the common order, before R-hat is taken of them. The likelihood is computed
    once more where the order changed, and must be the same.

    What is missing, or past the length, is NaN in x and in `log_predictive`, as xarray has it.

    Args:
        model: an `HMM`, or any program with a `pyrohmm.markov` loop.
        data: `Sequences` for an `HMM`, else the tuple of the program's arguments.
        draws: {site: (chains, draws, *shape)}, as `mcmc.get_samples(group_by_chain=True)` returns them.
        guide: draws the latent sites, in one chain, if there are no draws. Default: an `HMM`'s own.
        num_draws: how many to take from the guide, or how many paths to draw where the parameters are points.
        paths: whether the posterior gets state paths. Default: only where the parameters are points.
        align: whether to give states the same name in all draws.
        posterior_predictive: how many sets of sequences to draw (of an `HMM`), 0 for none; or the sequences, {site:
            (chains, draws, N, T, ...)}.
        prior: how many draws of parameters and sequences from the priors (of an `HMM`), 0 for none; or the draws,
            {site: (draws, *shape)}, as `pyro.infer.Predictive` returns them.
        observed_data: more of what was observed, or all of it for a program: {name: (N, T, ...)}.
        constant_data: more of what was given: {name: (N, T, ...)}.
        dims: names of the axes of a variable, beyond chain and draw, e.g. {"loc": ["state", "feature"]}. Default:
            axes of size K are those of states, in an `HMM`'s emission the first only, if it is; others name_dim_0, ...
        coords: labels of a dimension's entries, e.g. {"state": ["fair", "loaded"]}. Default: 0, 1, ...
        loop: name of the loop over time.
        seed: of all draws, without any effect on torch's global random numbers.
        progress: whether to show progress bars.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with 1.x.

    Raises:
        ImportError: ArviZ is not installed.
        TypeError: data or draws of another kind.
        ValueError: draws that do not fit, a latent site without draws, names of axes that do not fit; or, with `align`,
            a likelihood that depends on the order of states: of axes that are none (say so in `dims`), or because
            parts without draws tell them apart.

    Example:
        >>> from pyrohmm.nn import PoissonEmission
        >>> model = HMM(PoissonEmission(2, 1, rate=[[2.0], [9.0]]))
        >>> found = to_inference_data(model, model.simulate(4, 10, seed=0), num_draws=20, progress=False)
        >>> found["posterior"]["z"].dims, found["log_likelihood"]["x"].shape
        (('chain', 'draw', 'sequence', 'time'), (1, 20, 4))
    """
    args = _arguments(model, data)
    check_number("num_draws", num_draws, 1)
    if guide is None and isinstance(model, HMM):
        guide = model.given_guide
    modules = [part for part in (model, guide) if isinstance(part, torch.nn.Module)]
    with torch.no_grad(), own_parameters(*modules):
        values = parameter_draws(args, draws, guide, num_draws, derived_seed(seed, 0))
        return _Bridge(model, args, values, loop, dict(dims or {}), seed, progress).convert(
            num_draws, paths, align, posterior_predictive, prior, observed_data, constant_data, dict(coords or {})
        )


class _Bridge:
    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        values: Draws,
        loop: str,
        dims: dict[str, Sequence[str]],
        seed: int,
        progress: bool,
    ):
        self.args, self.values, self.loop = args, values, loop
        self.dims, self.seed, self.progress = dims, seed, progress
        self.hmm = model if isinstance(model, HMM) else None
        self.program = model.model if isinstance(model, HMM) else model
        self.shape = tuple(next(iter(values.values())).shape[:2]) if values else (1, 1)
        first = self._potentials(one(values, 0, 0))
        self.num_states, self.num_sites = first.initial.shape[-1], len(first.sites)

    def convert(
        self,
        num_draws: int,
        paths: bool | None,
        align: bool,
        predictive: int | Mapping[str, Tensor],
        prior: int | Mapping[str, Tensor],
        observed: Mapping[str, Tensor] | None,
        constant: Mapping[str, Tensor] | None,
        coords: dict[str, Sequence[Any]],
    ) -> Any:
        dims = {name: self._dims(name, value) for name, value in self.values.items()}
        align = align and any(name in _STATE_DIMS for names in dims.values() for name in names)
        evidence, modes, valid = self._run(align)
        if align:
            order = common_labels(modes.flatten(1), evidence.sum((-2, -1)).flatten(), self.num_states)
            self._reorder(order.unflatten(0, self.shape), dims, evidence)

        # Of points the chain is the same in every draw, and so are all likelihoods.
        shape = self.shape if self.values else (1, num_draws)
        evidence = evidence.expand(*shape, *evidence.shape[2:])
        likelihood = evidence.sum(-1)
        ahead = torch.where(valid, evidence, torch.nan)
        groups: dict[str, Variables] = {
            "posterior": {site: (("chain", "draw", *dims[site]), _array(value)) for site, value in self.values.items()},
            "log_likelihood": {"x": (("chain", "draw", "sequence"), _array(likelihood))},
            "log_predictive": {"x": (("chain", "draw", "sequence", "time"), _array(ahead))},
        }
        if paths or (paths is None and not self.values):
            drawn = _array(self._paths(shape))
            groups["posterior"]["z"] = (("chain", "draw", "sequence", "time"), drawn)
        if not isinstance(predictive, Mapping) and predictive and self.hmm is not None:
            check_number("posterior_predictive", predictive, 0)
            predictive, places = self._predictive(predictive)
            coords = {"predictive_draw": places, **coords}
        if isinstance(predictive, Mapping):
            groups["posterior_predictive"] = {
                site: (("chain", "draw", *self._data_dims(site, value[0, 0])), _array(value))
                for site, value in predictive.items()
            }
        groups.update(self._prior(prior))
        groups.update(self._data(observed, constant))
        return _packed({group: variables for group, variables in groups.items() if variables}, coords, self.num_states)

    def _run(self, decode: bool) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x_t | x_<t) (C, S, N, T) float64, the most probable states (C S, N, T), and which steps count (N, T).

        States are -1 past the length, and all of them if they are not wanted.
        """
        evidence, modes, valid = [], [], torch.ones((), dtype=torch.bool)
        for chain, draw in self._each("likelihoods"):
            potentials = self._potentials(one(self.values, chain, draw))
            logits, lengths = potentials[:3], potentials.lengths
            found = ops.filter(*logits, lengths=lengths).log_evidence
            evidence.append(_sequences(found.double()))
            if lengths is not None:
                valid = _sequences(valid_steps(lengths, found.shape[-1]).expand(found.shape))
            mode = torch.full_like(found, -1)
            if decode:
                marginals = ops.smooth(*logits, lengths=lengths).state_marginals
                mode = torch.where(marginals.sum(-1) > 0, marginals.argmax(-1), -1)
            modes.append(_sequences(mode).to(torch.int16))
        if self.hmm is not None:
            valid = self.args[0].observed
        return torch.stack(evidence).unflatten(0, self.shape), torch.stack(modes), valid

    def _potentials(self, values: Draws) -> Any:
        trace = trace_given(self.program, given(values), *self.args)
        node: Any = trace.nodes.get(self.loop)
        potentials = None if node is None else (node.get("infer") or {}).get("pyrohmm_potentials")
        if potentials is None:
            raise ValueError(f"loop: expected a pyrohmm.markov loop {self.loop!r} with data in the program, found none")
        return potentials.without_summed_plates()

    def _each(self, what: str) -> Iterator[tuple[int, int]]:
        chains, draws = self.shape
        places = itertools.product(range(chains), range(draws))
        return iter(tqdm(places, what, chains * draws, disable=not self.progress or not self.values))

    def _dims(self, name: str, value: Tensor) -> tuple[str, ...]:
        """Names of the axes of a site, without chain and draw."""
        shape = value.shape[2:]
        if name in self.dims:
            if len(self.dims[name]) != len(shape):
                raise ValueError(f"dims: expected {len(shape)} names for {name!r}, got {list(self.dims[name])}")
            return tuple(self.dims[name])
        # A table of an emission has its states in front; its entries may be as many.
        in_emission = self.hmm is not None and name.split(".")[0] not in ("initial", "transition")
        names, states = [], list(_STATE_DIMS)
        for axis, size in enumerate(shape):
            is_state = size == self.num_states and self.num_sites == 1 and states and not (in_emission and axis)
            names.append(states.pop(0) if is_state else f"{name}_dim_{axis}")
        return tuple(names)

    def _reorder(self, order: Tensor, dims: dict[str, tuple[str, ...]], evidence: Tensor) -> None:
        """Put the states of every draw into their order; `evidence` must not change by it."""
        identity = torch.arange(self.num_states)
        moved = [(c, s) for c, s in itertools.product(*map(range, self.shape)) if not order[c, s].equal(identity)]
        values = {name: value.clone() for name, value in self.values.items()}
        for chain, draw in tqdm(moved, "labels", disable=not (self.progress and moved)):
            index = order[chain, draw]
            for name, value in values.items():
                for axis, dim in enumerate(dims[name]):
                    if dim in _STATE_DIMS:
                        value[chain, draw] = value[chain, draw].index_select(axis, index.to(value.device))
            potentials = self._potentials(one(values, chain, draw))
            again = ops.log_partition(*potentials[:3], lengths=potentials.lengths).double().reshape(-1)
            before = evidence[chain, draw].sum(-1)
            if not torch.allclose(again, before.expand(again.shape), rtol=1e-4, atol=1e-3):
                worst = int((again - before).abs().argmax())
                raise ValueError(
                    f"dims: with the states of chain {chain}, draw {draw} in another order the log-likelihood of "
                    f"sequence {worst} changed from {float(before[worst]):.4f} to {float(again[worst]):.4f}. Either "
                    'not all axes of states, or others too, are called "state" or "next_state": name them in dims=, '
                    f"which are { {name: list(names) for name, names in dims.items()} }. Or parts of the model without "
                    "draws tell the states apart: then there are no labels to switch, pass align=False"
                )
        self.values = values

    def _paths(self, shape: tuple[int, ...]) -> Tensor:
        """State paths from their posterior, one a draw, (C, S, N, T)."""
        drawn = []
        if not self.values:
            chain = self._chain({})
            with seeded(derived_seed(self.seed, 1), chain.initial_logits.device):
                return _stacked_sequences(chain.sample(torch.Size(shape)), 2)
        for number, (chain, draw) in enumerate(self._each("paths")):
            law = self._chain(one(self.values, chain, draw))
            with seeded(derived_seed(self.seed, 2 + number), law.initial_logits.device):
                drawn.append(_sequences(law.sample()))
        # The values are in the common order already, and so are the paths.
        return torch.stack(drawn).unflatten(0, self.shape)

    def _chain(self, values: Draws) -> MarkovChain:
        potentials = self._potentials(values)
        return MarkovChain.from_potentials(*potentials[:3], lengths=potentials.lengths)

    def _predictive(self, number: int) -> tuple[dict[str, Tensor], list[int]]:
        """Sequences drawn with some of the draws, spread evenly over each chain."""
        model: Any = self.hmm
        data: Sequences = self.args[0]
        chains, draws = self.shape

        def drawn(copies: int, seed: int, guide: Any = None) -> Tensor:
            inputs = None if data.inputs is None else data.inputs.repeat(copies, 1, 1)
            lengths = data.lengths.repeat(copies)
            size = copies * len(data)
            found = model.simulate(size, data.num_steps, lengths=lengths, inputs=inputs, seed=seed, guide=guide)
            return _blanked(found.x.unflatten(0, (copies, len(data))), data)

        seed = derived_seed(self.seed, -1)
        if not self.values:
            return {"x": drawn(number, seed).unsqueeze(0)}, list(range(number))
        each = min(draws, -(-number // chains))
        places = torch.linspace(0, draws - 1, each).round().long().tolist()
        sets = []
        pairs = list(itertools.product(range(chains), places))
        for chain, draw in tqdm(pairs, "predictions", disable=not self.progress):
            guide = given(one(self.values, chain, draw))
            sets.append(drawn(1, derived_seed(seed, chain * draws + draw), guide)[0])
        return {"x": torch.stack(sets).unflatten(0, (chains, each))}, places

    def _prior(self, prior: int | Mapping[str, Tensor]) -> dict[str, Variables]:
        if isinstance(prior, Mapping):
            checked = {name: value.unsqueeze(0) for name, value in prior.items()}
            return {"prior": {n: (("chain", "draw", *self._dims(n, v)), _array(v)) for n, v in checked.items()}}
        check_number("prior", prior, 0)
        if not prior:
            return {}
        if self.hmm is None:
            raise ValueError("prior: expected draws for a program, like pyro.infer.Predictive returns, got a number")
        data: Sequences = self.args[0]
        simulate = prior_simulator(self.hmm, len(data), data.num_steps, lengths=data.lengths, inputs=data.inputs)
        pairs = [
            simulate(derived_seed(self.seed, -2 - i)) for i in tqdm(range(prior), "prior", disable=not self.progress)
        ]
        names = list(pairs[0][0])
        found = {name: torch.stack([values[name] for values, _ in pairs]) for name in names}
        x = torch.stack([_blanked(drawn.x, data) for _, drawn in pairs]).unsqueeze(0)
        predictive: Variables = {"x": (("chain", "draw", *self._data_dims("x", x[0, 0])), _array(x))}
        return {**self._prior(found), "prior_predictive": predictive}

    def _data(
        self, observed: Mapping[str, Tensor] | None, constant: Mapping[str, Tensor] | None
    ) -> dict[str, Variables]:
        seen, fixed = dict(observed or {}), dict(constant or {})
        if self.hmm is not None:
            data: Sequences = self.args[0]
            seen = {"x": _blanked(data.x, data), **seen}
            own = {"lengths": data.lengths, "observed": data.valid if data.mask is None else data.mask}
            own |= {name: getattr(data, name) for name in ("inputs", "labels", "allowed")}
            fixed = {name: value for name, value in own.items() if value is not None} | fixed
        return {
            group: {name: (self._data_dims(name, value), _array(value)) for name, value in values.items()}
            for group, values in (("observed_data", seen), ("constant_data", fixed))
        }

    def _data_dims(self, name: str, value: Tensor) -> tuple[str, ...]:
        """Names of the axes of what there is for each sequence and step."""
        if name in self.dims:
            return tuple(self.dims[name])
        own = ["sequence", "time"][: value.dim()]
        if name == "allowed":
            return (*own, "state")
        # The entries of x, and of a mask of them, are the same.
        stem = "x" if name == "observed" else name
        return (*own, *(f"{stem}_dim_{axis}" for axis in range(value.dim() - len(own))))


def _packed(groups: dict[str, Variables], coords: dict[str, Sequence[Any]], num_states: int) -> Any:
    """As ArviZ wants it: its own container before version 1, xarray's from then on."""
    import xarray

    places = coords.pop("predictive_draw", None)
    coords = {"state": range(num_states), "next_state": coords.get("state", range(num_states)), **coords}
    attrs = {"inference_library": "pyrohmm", "inference_library_version": library_version()}
    datasets = {}
    for group, variables in groups.items():
        sizes: dict[str, int] = {}
        for name, (dims, array) in variables.items():
            if len(dims) != array.ndim:
                raise ValueError(f"dims: expected {array.ndim} names for {name!r}, got {list(dims)}")
            sizes.update(zip(dims, array.shape, strict=True))
        index: dict[str, Any] = {dim: range(size) for dim, size in sizes.items()}
        index |= {dim: coords[dim] for dim in sizes if dim in coords}
        if group == "posterior_predictive" and places is not None:
            index["draw"] = places
        for dim, size in sizes.items():
            if len(index[dim]) != size:
                raise ValueError(f"coords: expected {size} labels for {dim!r}, got {len(index[dim])}")
        index = {dim: np.asarray(labels) for dim, labels in index.items()}
        datasets[group] = xarray.Dataset(variables, coords=index, attrs=attrs)
    # By the number: version 1 has a thing of this name too, which takes no groups.
    if int(version("arviz").split(".")[0]) < 1:
        import arviz

        return arviz.InferenceData(attrs=attrs, **datasets)
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _arguments(model: Callable[..., Any], data: Sequences | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(model, HMM):
        check_data(data)
        return (data,)
    if not callable(model):
        raise TypeError(f"model: expected an HMM or a Pyro program, got {type(model).__name__}")
    if not isinstance(data, tuple):
        raise TypeError(f"data: expected the tuple of the program's arguments, got {type(data).__name__}")
    return data


def _sequences(value: Tensor) -> Tensor:
    """(..., T) as (N, T)."""
    return _stacked_sequences(value, 0)


def _stacked_sequences(value: Tensor, lead: int) -> Tensor:
    """(*lead, ..., T) as (*lead, N, T)."""
    return value.reshape(*value.shape[:lead], -1, value.shape[-1])


def _blanked(x: Tensor, data: Sequences) -> Tensor:
    """Observations (..., N, T, *event), NaN where the data has none; whole numbers stay so if it has all."""
    mask = data.valid if data.mask is None else data.mask
    if mask.all():
        return x
    mask = mask.reshape(mask.shape + (1,) * (data.x.dim() - mask.dim()))
    return torch.where(mask, x if x.is_floating_point() else x.double(), torch.nan)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
