"""An ELBO in which the paths of a chain are summed out, not sampled."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyrohmm.distributions import MarkovChain, statewise
from pyrohmm.distributions.markov_chain import expected_values, moments
from pyrohmm.infer.elbo import UnreadELBO
from pyrohmm.ops.chain import valid_steps


class PathELBO(UnreadELBO):
    r"""The ELBO of a guide q(z) over the paths of a chain, the terms in z summed exactly.

    .. math:: E_{q(h)}\Big[ E_{q(z \mid h)} \Big[ \sum_t \log p(x_t, h_t \mid z_t) \Big]
        - KL\big(q(z \mid h) \,\|\, p(z)\big) + \log p(h) - \log q(h) \Big]

    For a model and a guide with the same site `pyro.sample("z", pyrohmm.MarkovChain(...))`, in the guide most often
    `MarkovChain.from_potentials(...)` of what a network made of the data. No path is drawn, and no score function is
    needed: given the draws h of the other latent sites, the value and its gradient are exact. The other sites are as
    in `Trace_ELBO`.

    The model is run once, with K constant paths in a dimension of their own, left of all plates. So every other site
    must see the state of its own step only: the path is the last dimension of z, and the site has

    - either steps as its first event dimension, `dist.Normal(loc[z], 1.0).to_event(1)`, or `.to_event(2)` for vectors,
    - or a plate of T steps around it that is not around z: then z[..., 0, :] of a z in plates at -2 and further left
      puts the steps into dimension -1.

    A site may also not see z at all. Whatever else sees z is refused: by its shape, or because another path shows that
    a step sees the states of other steps. Another path is tried at the first call, and where Pyro's validation is on
    at each; it shows nothing of a site whose log-probability is random itself, by dropout say. No site of the guide
    may depend on z. Masks, scales, minibatches and the lengths of q count as in Pyro; steps past the lengths are not
    read.

    As in `TraceEnum_ELBO` the number of plates must not change from call to call; state it by `max_plate_nesting` if it
    does.

    Args:
        num_particles, max_plate_nesting, vectorize_particles, retain_graph, ...: as for `pyro.infer.Trace_ELBO`.

    Raises:
        ValueError: (at a call) not exactly one site of the guide is a `MarkovChain`; the model does not have the same
            one; a site of the guide depends on it; or a site of the model does, otherwise than by the state at each
            step.

    Reference:
        Ranganath, Gerrish and Blei (2014), "Black box variational inference", on Rao-Blackwellisation; Johnson et al.
        (2016), "Composing graphical models with neural networks".

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrohmm import HiddenMarkovModel
        >>> x = torch.tensor([-1.2, -0.8, 0.9, 1.1])
        >>> prior = MarkovChain(torch.zeros(2), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), num_steps=4)
        >>> loc = torch.tensor([-1.0, 1.0])
        >>> def model():
        ...     z = pyro.sample("z", prior)
        ...     pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)
        >>> posterior = HiddenMarkovModel(prior, dist.Normal(loc, 1.0)).posterior(x)
        >>> def guide():
        ...     pyro.sample("z", posterior)
        >>> round(PathELBO().loss(model, guide), 4)  # of the exact posterior: -log p(x), with no noise
        6.4911
    """

    _generator: torch.Generator | None = None  # of the paths to try, once there was a call

    def _get_traces(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
        if self.max_plate_nesting == math.inf:
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        yield from super()._get_traces(model, guide, args, kwargs)

    def _guess_max_plate_nesting(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        # Pyro's own would score the sites, padding included.
        with poutine.block(), torch.no_grad():
            with _Paths(None, None):
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        sites = [site for trace in (model_trace, guide_trace) for site in _samples(prune_subsample_sites(trace))]
        plates = [-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
        self.max_plate_nesting = max([0, *plates, *(len(site["fn"].batch_shape) for site in sites)])
        if self.vectorize_particles and self.num_particles > 1:
            self.max_plate_nesting += 1

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces whose log-probabilities are those expected under q(z)."""
        check, num_batch = is_validation_enabled(), int(self.max_plate_nesting)
        paths = _Paths(num_batch, self._probe if check or self._generator is None else None)
        with paths:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if len(paths.chains) != 1:
            raise ValueError(f"guide: expected one latent site that is a MarkovChain, got {list(paths.chains)}")
        ((name, q),) = paths.chains.items()
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if check:
            check_model_guide_match(model_trace, guide_trace, num_batch)
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        p = model_trace.nodes[name]["fn"] if name in model_trace.nodes else None
        if not isinstance(p, MarkovChain):
            got = "none" if p is None else type(p).__name__
            raise ValueError(f"model: expected a MarkovChain at site {name!r}, as in the guide, got {got}")
        for site in _samples(model_trace):
            if not site["is_observed"] and site["name"] not in guide_trace.nodes:
                raise ValueError(f"guide: expected a site {site['name']!r}, which is latent in the model, got none")

        for site in _samples(guide_trace):
            if site["name"] != name and _sees_paths(site, num_batch):
                raise ValueError(
                    f"guide: expected sites that do not depend on {name!r}, which is summed out, got {site['name']!r}"
                )

        found = moments(q, p)
        of_q: Any = guide_trace.nodes[name]
        _set_log_prob(of_q, torch.where(found.possible, found.log_q, 0.0))
        no_score: Any = 0  # as nothing was drawn
        of_q["score_parts"] = ScoreParts(of_q["log_prob"], no_score, of_q["log_prob"])
        # A q without any path has no expectations; zeros would make it look like the best one.
        of_p: Any = model_trace.nodes[name]
        _set_log_prob(of_p, torch.where(found.possible, found.log_p, -torch.inf))
        summed: set[str] = set()
        for site in _samples(model_trace):
            if site["name"] == name or not _sees_paths(site, num_batch):
                continue
            summed.add(site["name"])
            log_probs = _step_log_probs(site, of_p["cond_indep_stack"], num_batch, q)
            if paths.probe is not None:
                _check_steps(site["name"], log_probs, paths.probe, q)
            values = log_probs[: q.num_states].movedim(0, -1)
            _set_log_prob(site, expected_values(found.states, values, q.lengths), scaled=True)
        guide_trace.compute_score_parts()
        model_trace.compute_log_prob()
        if check:
            for site in _samples(model_trace):
                if site["name"] not in summed:
                    check_site_shape(site, num_batch)
        return model_trace, guide_trace

    def _probe(self, chain: MarkovChain) -> Tensor:
        """Another path at each call; not from torch's random state, which validation must not change."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(0)
        path = torch.randint(chain.num_states, (chain.num_steps,), generator=self._generator)
        return path.to(chain.initial_logits.device)


class _Paths(Messenger):
    """Each constant path, and twice the path to try, in place of a draw of a chain, in a dimension left of all plates.

    Without a number of batch dimensions, one constant path in the shape of a draw.
    """

    def __init__(self, num_batch: int | None, make_probe: Callable[[MarkovChain], Tensor] | None):
        super().__init__()
        self.num_batch, self.make_probe = num_batch, make_probe
        self.chains: dict[str, MarkovChain] = {}
        self.probe: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        chain = msg["fn"]
        if not isinstance(chain, MarkovChain) or msg["is_observed"]:
            return
        self.chains[msg["name"]] = chain
        num_steps = chain.num_steps
        rows = torch.arange(chain.num_states, device=chain.initial_logits.device).unsqueeze(-1).expand(-1, num_steps)
        if self.num_batch is None:
            msg["value"] = rows[0].expand(*chain.batch_shape, num_steps)
        else:
            if self.make_probe is not None:
                self.probe = self.make_probe(chain)
                rows = torch.cat([rows, self.probe.expand(2, -1)])
            msg["value"] = rows.reshape(len(rows), *(1,) * self.num_batch, num_steps)
        msg["done"] = True


def _samples(trace: poutine.Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _sees_paths(site: Any, num_batch: int) -> bool:
    event_dim = len(site["fn"].event_shape)
    value_dim = site["value"].dim() - event_dim if isinstance(site["value"], Tensor) else 0
    return max(len(site["fn"].batch_shape), value_dim) > num_batch


def _set_log_prob(site: Any, log_prob: Tensor, *, scaled: bool = False) -> None:
    """What `Trace.compute_log_prob` would have set."""
    site["unscaled_log_prob"] = log_prob
    site["log_prob"] = log_prob if scaled else scale_and_mask(log_prob, site["scale"], site["mask"])
    site["log_prob_sum"] = site["log_prob"].sum()


def _step_log_probs(site: Any, around_path: Any, num_batch: int, chain: MarkovChain) -> Tensor:
    """The log-probability of each step on each path, (paths, *batch, T), scaled and masked.

    Raises:
        ValueError: the site has no dimension of steps, or more dimensions than plates.
    """
    name, fn, mask, scale = site["name"], site["fn"], site["mask"], site["scale"]
    num_steps, valid = chain.num_steps, _valid(chain)
    own = [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame not in around_path]
    time = [frame.dim for frame in own if frame.size == num_steps]
    if len(time) > 1:
        raise ValueError(f"site {name!r}: expected one plate of {num_steps} steps that is not around the path, got two")
    if time:
        # Between the two places of time: with the batch, and right of it.
        (dim,) = time
        valid = valid.reshape((1,) * (1 - dim - valid.dim()) + valid.shape).squeeze(dim - 1).movedim(-1, dim)
    else:
        while isinstance(fn, MaskedDistribution):
            mask = fn._mask if mask is None else mask & fn._mask
            fn = fn.base_dist
        num_events = 0
        while isinstance(fn, torch.distributions.Independent):
            num_events += fn.reinterpreted_batch_ndims
            fn = fn.base_dist
        if num_events == 0 or fn.batch_shape[-num_events] != num_steps:
            raise ValueError(
                f"site {name!r}: expected a function of the state at each step, with {num_steps} steps in its first "
                f"event dimension (.to_event) or in a plate, got batch shape {tuple(site['fn'].batch_shape)} and event "
                f"shape {tuple(site['fn'].event_shape)}"
            )
        mask, scale = _with_steps(mask), _with_steps(scale)
        if num_events > 1:
            fn = fn.to_event(num_events - 1)
        elif isinstance(fn, MaskedDistribution):
            mask = fn._mask if mask is None else mask & fn._mask
            fn = fn.base_dist
    read = valid if mask is None else valid & mask
    log_probs = statewise.log_prob(fn, site["value"], read)
    log_probs = scale_and_mask(log_probs, scale, read)
    if time:
        log_probs = log_probs.movedim(time[0], -1).unsqueeze(time[0] - 1)
    if log_probs.dim() != num_batch + 2:
        raise ValueError(
            f"site {name!r}: expected {num_batch} batch dimensions beside that of the paths, "
            f"got {log_probs.dim() - 2}; does it use the path in another shape than it was sampled in?"
        )
    return log_probs


def _with_steps(value: Any) -> Any:
    """A mask or a scale of the batch, for steps right of it."""
    return value.unsqueeze(-1) if isinstance(value, Tensor) and value.dim() else value


def _check_steps(name: str, log_probs: Tensor, path: Tensor, chain: MarkovChain) -> None:
    """Raise unless the log-probabilities of a path's steps are those of the constant paths of their states."""
    constant, tried, again = log_probs[:-2], log_probs[-2], log_probs[-1]
    tolerance = torch.finfo(log_probs.dtype).eps ** 0.5

    def differ(other: Tensor) -> Tensor:
        return ~torch.isclose(tried, other, rtol=tolerance, atol=tolerance, equal_nan=True)

    wrong = differ(constant.gather(0, path.expand(1, *tried.shape)).squeeze(0)) & _valid(chain)
    # Where twice the same path has two log-probabilities, they are random.
    if wrong.any() and not differ(again).any():
        raise ValueError(
            f"site {name!r}: expected a function of the state at each step, but its log-probability at index "
            f"{tuple(wrong.nonzero()[0].tolist())} depends on the states at other steps too"
        )


def _valid(chain: MarkovChain) -> Tensor:
    """(..., T), True within the lengths."""
    lengths = chain.lengths
    if lengths is None:
        lengths = torch.full((), chain.num_steps, device=chain.initial_logits.device)
    return valid_steps(lengths, chain.num_steps)
