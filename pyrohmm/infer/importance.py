"""The likelihood of each sequence, estimated by importance sampling from a guide."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm.data import Sequences
from pyrohmm.infer.common import as_programs, check_counts, check_seed, check_sequences, mode, modules
from pyrohmm.infer.diagnosis import in_trace
from pyrohmm.models.isolation import own_parameters, seeded
from pyrohmm.program.posterior import check_proposed

Program = Callable[[Sequences], Any]


class ImportanceEstimate(NamedTuple):
    """The result of `importance_log_prob`.

    Attributes:
        log_prob: of each sequence, (N,), nats, float64.
        effective_sample_size: of each sequence, (N,), from 1 to the number of particles S; 0 where the sequence is
            impossible in every particle. The standard error of `log_prob` is about sqrt(1 / ESS - 1 / S) nats; where
            ESS is a few only, the estimate is too low and so is that error.
    """

    log_prob: Tensor
    effective_sample_size: Tensor


def importance_log_prob(
    model: Any,
    data: Sequences,
    guide: Program | None = None,
    *,
    num_particles: int = 1000,
    chunk_size: int = 1024,
    plate: str = "sequences",
    seed: int = 0,
    progress: bool = True,
) -> ImportanceEstimate:
    r"""The log-likelihood of each sequence, with its latent sites drawn from a guide and weighted.

    .. math::
        \log p(x_n) \approx \log \frac{1}{S} \sum_{s=1}^S w_{ns}, \qquad
        w_{ns} = \frac{p(x_n, h_{ns})}{q(h_{ns} \mid x_n)}, \quad h_{ns} \sim q(h \mid x_n).

    Its expectation is at most log p(x_n), at least the ELBO, and grows with S. The weights are those of each sequence
    by itself, from the sites in the plate of the sequences. Sites outside of the plate are held fixed: latent ones,
    such as parameters with a prior, are drawn once from the guide, and the estimate is log p(x_n | them). The states
    of `pyrohmm.markov` loops are summed out, not drawn.

    A minibatch holds each of its sequences several times, so that programs need not know of particles; they must treat
    sequences as independent of each other. Modules are in eval mode, there are no gradients, and torch's random state
    is not touched.

    Args:
        model: a Pyro program of `Sequences`, with a plate of them; or an object with `.model` and `.guide`.
        data: N sequences.
        guide: a Pyro program of the same argument. Default: the model's `.guide`, or an empty one.
        num_particles: S.
        chunk_size: the largest number of sequences, each one counted for every particle, in a run of the programs:
            what memory allows.
        plate: name of the plate.
        seed: of the draws. The same seed and chunk_size give the same numbers.
        progress: whether to show a progress bar.

    Returns:
        `ImportanceEstimate`: log p(x_n) and the effective sample size (sum of w)^2 / (sum of w^2), each (N,).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, a latent site of the model is not
            sampled by the guide, or nothing is in the plate.
        FloatingPointError: a weight is NaN or infinitely large.

    Reference:
        Burda, Grosse, Salakhutdinov (2016), "Importance weighted autoencoders"; for the sample size Kong (1992), "A
        note on importance sampling using standardized weights".

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     with pyro.plate("sequences", data.num_total, subsample=data.index):
        ...         h = pyro.sample("h", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(h, 1.0), obs=data.x[:, 0])
        >>> def guide(data):
        ...     with pyro.plate("sequences", data.num_total, subsample=data.index):
        ...         pyro.sample("h", dist.Normal(data.x[:, 0] / 2, 0.8))
        >>> data = Sequences(torch.tensor([[0.0], [2.0]]))
        >>> found = importance_log_prob(model, data, guide, progress=False)
        >>> [round(value, 1) for value in found.log_prob.tolist()]  # of Normal(0, sqrt(2))
        [-1.3, -2.3]
        >>> (found.effective_sample_size > 900).all()
        tensor(True)
    """
    check_sequences("data", data)
    check_counts(num_particles=num_particles, chunk_size=chunk_size)
    check_seed(seed)
    program, guide = as_programs(model, guide)
    roots = modules(program, guide)
    with (
        torch.no_grad(),
        own_parameters(*roots),
        mode(roots, training=False),
        seeded(seed, data.x.device),
        tqdm(total=len(data) * num_particles, desc="particles", disable=not progress) as bar,
    ):
        # From some of the sequences: what is outside of the plate does not depend on which.
        trace, fixed = _traces(program, guide, data[:chunk_size].trim())
        plates = sorted({frame.name for site in trace.nodes.values() for frame in _frames(site)})
        if plate not in plates:
            raise ValueError(f"plate: expected the plate of the sequences in the model, one of {plates}, got {plate!r}")
        for name in [name for name, site in fixed.nodes.items() if _frame(site, plate)]:
            fixed.remove_node(name)
        programs = program, poutine.replay(guide, trace=fixed)
        parts = []
        for batch in data.batches(chunk_size):
            # Running log-sums of the weights and of their squares.
            first = torch.full((len(batch),), -torch.inf, dtype=torch.float64, device=data.x.device)
            second, rows = first, torch.arange(len(batch), device=data.x.device)
            at_once = max(1, chunk_size // len(batch))
            for begun in range(0, num_particles, at_once):
                copies = min(at_once, num_particles - begun)
                log_weights = _log_weights(*programs, batch[rows.repeat(copies)], plate).reshape(copies, -1)
                first = first.logaddexp(log_weights.logsumexp(0))
                second = second.logaddexp((2 * log_weights).logsumexp(0))
                bar.update(log_weights.numel())
            parts.append((first, second))
    first, second = (torch.cat(sums) for sums in zip(*parts, strict=True))
    size = torch.where(first > -torch.inf, (2 * first - second).exp(), 0.0)
    return ImportanceEstimate(first - math.log(num_particles), size)


def _traces(model: Program, guide: Program, data: Sequences) -> tuple[Trace, Trace]:
    """Of the model, given a draw from the guide, and of the guide."""
    drawn = poutine.trace(guide).get_trace(data)
    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(data)
    trace, drawn = prune_subsample_sites(trace), prune_subsample_sites(drawn)
    check_proposed(trace, drawn)
    for name in drawn.stochastic_nodes:
        if name not in trace and not (drawn.nodes[name]["infer"] or {}).get("is_auxiliary"):
            raise ValueError(f"guide: expected sites of the model, got {name!r}, which is not auxiliary")
    return trace, drawn


def _log_weights(model: Program, guide: Program, data: Sequences, plate: str) -> Tensor:
    """log p(x, h) - log q(h) of each of the N sequences, for one draw of h, (N,), float64."""
    trace, drawn = _traces(model, guide, data)
    log_weights = _log_prob(trace, data, plate) - _log_prob(drawn, data, plate)
    if not (log_weights < torch.inf).all():
        found = in_trace("guide", drawn, data) + in_trace("model", trace, data)
        raise FloatingPointError(f"a weight is NaN or infinitely large: {'; '.join(found)}")
    return log_weights


def _log_prob(trace: Trace, data: Sequences, plate: str) -> Tensor:
    """The log-probability of the sites in the plate, without the scale of a minibatch, (N,)."""
    trace.compute_log_prob(site_filter=lambda name, site: _frame(site, plate) is not None)
    total = torch.zeros(len(data), dtype=torch.float64, device=data.x.device)
    for site in trace.nodes.values():
        if frame := _frame(site, plate):
            log_prob = site["log_prob"].double() * (frame.size / (frame.full_size or frame.size))
            if frame.size != len(data):
                raise ValueError(f"plate: expected {plate!r} to hold the {len(data)} sequences, got size {frame.size}")
            # One number for all stands for the same one for each.
            log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, (frame.size, *[1] * (-frame.dim - 1))))
            log_prob = log_prob.movedim(frame.dim, 0).flatten(1).sum(1) if log_prob.dim() > 1 else log_prob
            total = total + log_prob
    return total


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized] if site["type"] == "sample" else []


def _frame(site: Any, plate: str) -> Any:
    """The plate of this name that a site is in, or None."""
    return next((frame for frame in _frames(site) if frame.name == plate), None)
