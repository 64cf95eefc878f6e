"""From the log-probabilities that a loop's body leaves at its sites to the three tensors of `pyrohmm.ops`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """What one site adds to the log-probability of a run of the body.

    `log_prob` has the batch dimensions of the program on the right and the enumeration dimensions on their left;
    `plates` are the dimensions of the plates that the body itself opened around the site.
    """

    site: str
    kind: Literal["state", "observed"]
    log_prob: Tensor
    plates: frozenset[int]
    scale: float | Tensor


class StateSite(NamedTuple):
    """A state site: its name and the values of its support, (K, *event)."""

    name: str
    support: Tensor


@dataclass
class Layout:
    """Where the dimensions are: `time` is the loop's, the i-th state site is enumerated at `leftmost - i`.

    In the second run the states of the previous step keep these dimensions, and the new ones lie left of them.
    `enclosing` are the dimensions of the plates around the loop.
    """

    time: int
    leftmost: int
    enclosing: frozenset[int]
    sizes: list[int] = field(default_factory=list)

    @property
    def num_batch_dims(self) -> int:
        """Batch dimensions of a term, the time dimension included."""
        return -self.leftmost - 1

    def dim(self, site: int, run: int) -> int:
        """Enumeration dimension of the i-th state site in the first, second, third... run of the body."""
        return self.leftmost - site - (len(self.sizes) if run % 2 == 0 else 0)


class Potentials(NamedTuple):
    """A chain's potentials, with batch dimensions as in the program but for the time dimension, which is taken out.

    `chains` are the program's dimensions along which there are separate chains: of plates around the loop, and of
    plates in its body that hold state sites.
    """

    initial: Tensor
    transition: Tensor
    observation: Tensor
    lengths: Tensor | None
    scale: float | Tensor
    layout: Layout
    sites: tuple[StateSite, ...]
    chains: frozenset[int]

    def restore_time(self, value: Tensor) -> Tensor:
        """Put the time dimension, of size one, back into a result of the chain's batch shape."""
        missing = -self.layout.time - 1 - value.dim()
        if missing > 0:
            value = value.reshape((1,) * missing + value.shape)
        return value.unsqueeze(self.layout.time)

    def without_summed_plates(self) -> "Potentials":
        """The same without the batch dimensions, right of time, of plates that the body's sites are summed over."""

        def squeeze(value: Tensor, trailing: int) -> Tensor:
            # From left to right: dimensions count from the right, so that a removal does not move the next.
            for dim in range(self.layout.time + 1, 0):
                if dim not in self.chains and value.dim() - trailing >= -dim:
                    value = value.squeeze(dim - trailing)
            return value

        return self._replace(
            initial=squeeze(self.initial, 1),
            transition=squeeze(self.transition, 3),
            observation=squeeze(self.observation, 2),
            lengths=None if self.lengths is None else squeeze(self.lengths, 0),
        )


def assemble(
    first: Sequence[Term],
    rest: Sequence[Term],
    num_steps: int,
    lengths: Tensor | None,
    layout: Layout,
    sites: tuple[StateSite, ...],
) -> Potentials:
    """The potentials of a loop whose body left the terms `first` (step 0) and `rest` (steps 1..T-1)."""
    plates = _state_plates([*first, *rest])
    scale = _common_scale([*first, *rest])
    states = tuple(layout.sizes)
    num_states = prod(states)

    num_sites = len(states)

    def joined(values: list[Tensor], num_from: int) -> Tensor | None:
        """Sum of aligned terms, the states joined into one dimension (and the previous states into another)."""
        if not values:
            return None
        total = sum(values[1:], values[0])
        batch = total.shape[: total.dim() - num_sites * (1 + num_from)]
        return total.expand(*batch, *states * (1 + num_from)).reshape(*batch, *(num_states,) * (1 + num_from))

    def aligned(term: Term, run: int) -> Tensor:
        return _aligned(term, run, num_steps, plates, layout)

    zero = first[0].log_prob.new_zeros(())
    initial = joined([aligned(term, 1) for term in first if term.kind == "state"], 0)
    assert initial is not None  # a loop without a state site is refused before
    initial = initial.squeeze(-2)
    observation = joined([aligned(term, 1) for term in first if term.kind == "observed"], 0)
    if observation is None:
        observation = zero.expand(1, num_states)

    # A term that sees the previous state belongs to the transition, be it of a state or of an observation.
    pairwise, unary = [], []
    for term in rest:
        value = aligned(term, 2)
        states_at = value.dim() - num_sites
        if term.kind == "state" or any(size > 1 for size in value.shape[states_at - num_sites : states_at]):
            pairwise.append(value)
        else:
            # The dimensions of the previous states are all of size one here.
            unary.append(value.reshape(value.shape[: states_at - num_sites] + value.shape[states_at:]))
    transition = joined(pairwise, 1)
    if transition is None:
        transition = zero.expand(1, num_states, num_states)
    if num_steps > 1:
        later = joined(unary, 0)
        later = zero.expand(1, num_states) if later is None else later
        batch = torch.broadcast_shapes(observation.shape[:-2], later.shape[:-2])
        observation = torch.cat(
            [observation.expand(*batch, 1, -1), later.expand(*batch, num_steps - 1, -1)],
            -2,
        )
    if lengths is not None:
        lengths = lengths.reshape(lengths.shape + (1,) * (-layout.time - 1))
    # They are summed in the end, so they promote as in a sum.
    dtype = torch.promote_types(torch.promote_types(initial.dtype, transition.dtype), observation.dtype)
    return Potentials(
        initial=_strip(initial.to(dtype), 1),
        transition=_strip(transition.to(dtype), 3),
        observation=_strip(observation.to(dtype), 2),
        lengths=lengths,
        scale=scale,
        layout=layout,
        sites=sites,
        chains=layout.enclosing | plates,
    )


def _aligned(term: Term, run: int, num_steps: int, plates: frozenset[int], layout: Layout) -> Tensor:
    """A term as (*batch without time, time, [*previous states,] *states)."""
    value = term.log_prob
    for dim in term.plates - plates:
        value = value.sum(dim, keepdim=True)
    num_sites, num_batch = len(layout.sizes), layout.num_batch_dims
    rank = num_batch + num_sites * (1 if run == 1 else 2)
    if value.dim() > rank:
        raise ValueError(
            f"site {term.site!r}: expected at most {rank} batch dimensions, got shape {tuple(value.shape)}; is the "
            "last one an event dimension, .to_event(1)?"
        )
    value = value.reshape((1,) * (rank - value.dim()) + value.shape)
    size, steps = value.shape[layout.time], 1 if run == 1 else num_steps - 1
    if size not in (1, steps):
        raise ValueError(
            f"site {term.site!r}: expected {steps} step(s) at the time dimension {layout.time}, got {size}; "
            "slice data by the loop's variable, e.g. x[:, t]"
        )
    # The enumeration dimensions count to the left: the first site is the innermost.
    leading = rank - num_batch
    value = value.permute(*range(leading, rank), *reversed(range(leading)))
    # Now (*batch with time, [*previous states,] *states); move time to the end of the batch.
    return value.movedim(num_batch + layout.time, num_batch - 1)


def _state_plates(terms: Sequence[Term]) -> frozenset[int]:
    """The plates, opened by the body, along which there are separate chains: those around its state sites."""
    of_states = {term.site: term.plates for term in terms if term.kind == "state"}
    plates = next(iter(of_states.values()))
    for site, other in of_states.items():
        if other != plates:
            raise ValueError(
                f"state sites of one loop must share the plates opened in its body: {next(iter(of_states))!r} is in "
                f"dimensions {sorted(plates)}, {site!r} in {sorted(other)}; write one loop for each"
            )
    for term in terms:
        if not plates <= term.plates:
            raise ValueError(
                f"site {term.site!r}: expected inside of the plates at dimensions {sorted(plates)}, like the loop's "
                "state sites"
            )
    return plates


def _common_scale(terms: Sequence[Term]) -> float | Tensor:
    scale = terms[0].scale
    for term in terms[1:]:
        if term.scale is not scale and not _equal(term.scale, scale):
            raise ValueError(
                f"sites of one loop must share a scale (poutine.scale, subsampling plates in the body): "
                f"{terms[0].site!r} has {scale}, {term.site!r} has {term.scale}"
            )
    return scale


def _equal(a: float | Tensor, b: float | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    return a == b


def _strip(value: Tensor, trailing: int) -> Tensor:
    """Drop leading batch dimensions of size one."""
    while value.dim() > trailing and value.shape[0] == 1:
        value = value.squeeze(0)
    return value
