"""The loop over time in a Pyro program, and the value of a site some steps ago."""

import sys
from collections.abc import Iterator

import pyro
import torch
from torch import Tensor

from pyrohmm.ops.chain import valid_steps
from pyrohmm.program.collapsed import CollapsedLoop
from pyrohmm.program.loop import check_lengths, check_masks, reserved_dim, running_loop
from pyrohmm.program.sequential import SequentialLoop
from pyrohmm.program.tracked import keeps_state_of_run


def markov(
    name: str, num_steps: int, *, dim: int = -1, lengths: Tensor | None = None, vectorized: bool = True
) -> Iterator[slice]:
    r"""Loop over the steps of a hidden Markov model, in a Pyro program; the states are summed out exactly.

    The body is ordinary Pyro: a state site whose distribution depends on the state of the previous step, and any
    observed sites. Several state sites are a factorial chain, several observed sites several streams. The loop
    variable is a slice of the time axis, never a number: ask `z is None` for the first step, not `t == 0`. The body
    runs twice, for `slice(0, 1)` and `slice(1, T)`, and the loop leaves one factor in the program, a site with the
    loop's name,

    .. math:: \log p(x) = \log \sum_{z_{1:T}} p(z_1) \prod_{t<T} p(z_{t+1} \mid z_t) \prod_t p(x_t \mid z_t),

    on which every inference algorithm of Pyro works: no enumerating ELBO is needed. When nothing in the body is
    observed, the loop simulates instead, step by step; the simulated sequences are then deterministic sites of the
    program, with the names in the body and the full time axis (states -1 and other sites 0 past the length).

    A continuous latent path h, with the states summed out given it (a switching state space model), is a site of the
    body too, if a guide samples all of it, as one site of the same name: with the shape of data, such as (N, T, D), or
    with time as the first of its event dimensions, (N, 1, T, D). When the program is replayed against that guide, as
    every ELBO does, the loop takes its values as it takes data, and log p(h | z) is in the loop's factor; the site in
    the model's trace has log-probability zero. `previous("h", None, t)` is the path one step ago.

    State sites need no `infer={"enumerate": "parallel"}`. As in Pyro's own enumeration, a mask (`poutine.mask`)
    applies to observed sites only, and a scale must be common to the sites of the loop. `pyro.condition` on a site of
    the body takes data with the full time axis. Do not leave the loop by `break`: the factor comes at its end. What
    differs between steps must come from slices of tensors, not from a counter in Python.

    Args:
        name: name of the factor, and of the time dimension.
        num_steps: number of steps T, padding included.
        dim: batch dimension of time (negative), as for `pyro.plate`; plates may lie on both sides.
        lengths: (...), int64, valid steps of each sequence, aligned with the batch dimensions left of `dim`; all T
            when None. Observations past the length are not read.
        vectorized: False for the plain sequential program, `pyro.markov(range(T))` with sites `z_0, x_0, z_1, ...`,
            one run of the body a step, for `TraceEnum_ELBO` and for checking.

    Yields:
        Slices of the time axis: `x[:, t]` keeps the axis, of size 1 or T-1.

    Raises:
        ValueError: lengths that do not fit; an unobserved site, beside data, that cannot be enumerated and that no
            guide has sampled; a branch on a state's value; a state used two steps later; different state sites or
            numbers of states at the first and later steps; data at later steps only. Each message says what to do
            instead.
        NotImplementedError: the program is being traced by `torch.jit`, in the vectorised form.

    Reference:
        Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs"; Pyro's `markov`.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrohmm, torch
        >>> transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> loc = torch.tensor([-1.0, 1.0])
        >>> def model(x):
        ...     z = None
        ...     for t in pyrohmm.markov("time", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2) if z is None else transition[z]))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])
        >>> x = torch.tensor([-1.2, -0.8, 0.9, 1.1])
        >>> pyro.poutine.trace(model).get_trace(x).log_prob_sum()
        tensor(-6.4911)
        >>> pyrohmm.posterior(model)(x)["time"].viterbi().states
        tensor([0, 0, 1, 1])
    """
    if vectorized and torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise NotImplementedError(
            "pyrohmm.markov: expected to run outside of torch.jit's tracing, got a traced program; use Trace_ELBO "
            "instead of JitTrace_ELBO, or jit_compile=False: the body of the loop runs only twice as it is"
        )
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected a non-empty string, got {name!r}")
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected an integer >= 1, got {num_steps!r}")
    if not isinstance(dim, int) or dim >= 0:
        raise ValueError(f"dim: expected a negative integer, got {dim!r}")
    check_lengths(lengths, num_steps, dim)
    check_masks(name, dim)
    return (_collapsed if vectorized else _sequential)(name, num_steps, dim, lengths)


def _collapsed(name: str, num_steps: int, dim: int, lengths: Tensor | None) -> Iterator[slice]:
    loop = CollapsedLoop(name, num_steps, dim, lengths)

    def steps() -> Iterator[slice]:
        yield slice(0, 1)
        if loop.simulating:
            yield from (slice(t, t + 1) for t in range(1, num_steps))
        elif num_steps > 1:
            yield slice(1, num_steps)

    try:
        with reserved_dim(name, dim):
            for step in steps():
                loop.begin(step)
                with loop:
                    yield step
                loop.end_run()
            # A variable that still holds the first run's state may be a harmless leftover, or a second-order chain
            # whose second step would silently stand for all later ones. One more step tells.
            if not loop.simulating and num_steps > 2 and keeps_state_of_run(sys._getframe(1).f_locals, loop, 1):
                last = slice(num_steps - 1, num_steps)
                loop.begin(last, probing=True)
                with loop:
                    yield last
    finally:
        loop.run = torch.inf
    if loop.simulating:
        loop.leave_simulated()
    else:
        loop.leave_factor()
        loop.leave_proposed()


def _sequential(name: str, num_steps: int, dim: int, lengths: Tensor | None) -> Iterator[slice]:
    loop = SequentialLoop(name, num_steps, dim, lengths)
    with reserved_dim(name, dim):
        for t in pyro.markov(range(num_steps)):
            loop.begin(t)
            with loop:
                yield loop.step
    loop.leave_proposed()


def previous(
    site: str, value: Tensor | None, t: slice, *, axis: int = 1, lag: int = 1, initial: float | Tensor = 0.0
) -> Tensor:
    """The value of a site, observed or proposed by a guide, some steps ago, in the body of a `markov` loop.

    Works in both forms of the loop and while it simulates, where the values are those simulated so far.

    Args:
        site: name of the site.
        value: its data with the full time axis, e.g. (B, T, D); None where the loop simulates, and where the data are
            those of a guide or of `pyro.condition`, which the loop knows.
        t: the loop variable.
        axis: the axis of `value` that t slices, of size num_steps: 1 for `x[:, t]`.
        lag: how many steps ago, at least 1.
        initial: the value before the first step; a number, or a tensor that broadcasts against one step.

    Returns:
        What `value[:, t]` would be `lag` steps earlier; entries past a sequence's length are `initial`. Without a value
        it is `initial` itself, of its own shape, before there has been any. A missing observation in between is
        returned as it stands in `value`: fill NaN first.

    Raises:
        ValueError: lag < 1, or `value` has not num_steps entries at `axis`.
        RuntimeError: called outside of a loop, or the site has no simulated value yet.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrohmm, torch
        >>> def model(x):
        ...     z = None
        ...     for t in pyrohmm.markov("time", x.shape[0]):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        ...         before = pyrohmm.previous("x", x, t, axis=0)
        ...         print(before)
        ...         pyro.sample("x", dist.Normal(before, 1.0 + z), obs=x[t])
        >>> model(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.])
        tensor([1., 2.])
    """
    if lag < 1:
        raise ValueError(f"lag: expected at least 1, got {lag}")
    loop = running_loop()
    if value is None and site in loop.paths:
        value, axis = loop.paths[site]
    if value is None:
        drawn = loop.simulated.get(site, [])
        if t.start >= lag:
            if len(drawn) < lag:
                raise RuntimeError(f"previous: expected site {site!r} to be simulated in loop {loop.name!r}, it is not")
            return drawn[t.start - lag]
        return torch.as_tensor(initial)
    if not -value.dim() <= axis < value.dim() or value.shape[axis] != loop.num_steps:
        raise ValueError(
            f"value: expected the full time axis of {loop.num_steps} steps at axis {axis}, got shape "
            f"{tuple(value.shape)}"
        )
    axis %= value.dim()
    start, stop = t.start - lag, t.stop - lag
    source = value.narrow(axis, max(start, 0), max(stop, 0) - max(start, 0))
    # A number is not copied to a GPU, which would wait for it, but filled in there.
    fill = initial.to(value) if isinstance(initial, Tensor) else value.new_full((), initial)
    if loop.lengths is not None:
        # Padding may hold anything; a network must not see it.
        read = valid_steps(loop.lengths, loop.num_steps)[..., max(start, 0) : max(stop, 0)]
        source = torch.where(read[(..., *(None,) * (value.dim() - axis - 1))], source, fill)
    missing = min(lag, t.stop) - t.start if start < 0 else 0
    if missing > 0:
        shape = [*value.shape[:axis], missing, *value.shape[axis + 1 :]]
        source = torch.cat([fill.expand(shape), source], axis)
    return source
