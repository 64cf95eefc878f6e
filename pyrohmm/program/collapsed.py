"""The vectorised form of the loop: states are enumerated, sites recorded, and one factor is left; or it simulates."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, Unit
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR, _PYRO_STACK, am_i_wrapped
from torch import Tensor

from pyrohmm import ops
from pyrohmm.distributions import statewise
from pyrohmm.program.loop import (
    LoopMessenger,
    enclosing_plates,
    enumerated_around,
    inside_plates,
    refuse_intervention,
)
from pyrohmm.program.potentials import Layout, Potentials, StateSite, Term, assemble
from pyrohmm.program.tracked import Mark, plain, track

# Dimensions kept free, between the plates around a loop and its enumeration dimensions, for plates in its body.
_MARGIN = 4


class CollapsedLoop(LoopMessenger):
    """The handler of a vectorised loop: records the sites of each run of the body, or simulates them.

    `run` counts the runs of the body from 1; it is infinite once the loop has ended.
    """

    def __init__(self, name: str, num_steps: int, dim: int, lengths: Tensor | None):
        super().__init__(name, num_steps, dim, lengths)
        self.run: float = 0
        self.plates = enclosing_plates()
        enumerated = getattr(_ENUM_ALLOCATOR, "dim_to_id", {})
        around = [loop.layout.leftmost - 2 * len(loop.sites) for loop in _PYRO_STACK if isinstance(loop, CollapsedLoop)]
        leftmost = min([dim, *self.plates, *enumerated, *around]) - _MARGIN
        self.layout = Layout(dim, leftmost, frozenset(self.plates))
        self.sites: list[StateSite] = []
        self.terms: list[list[Term]] = [[], []]
        self.simulating = False
        self.probing = False
        self._latent: str | None = None  # a site that can only be simulated
        self._names: set[str] = set()
        self._num_states_seen = 0
        self._pending: list[Callable[[], None]] = []  # draws of the first step, should it turn out to simulate
        self._drawn: dict[int, Tensor] = {}  # enumeration dimension -> index of the drawn state
        self._shapes: dict[str, tuple[Any, int]] = {}  # site -> plates opened in the body, event dimensions

    def begin(self, step: slice, *, probing: bool = False) -> None:
        """Prepare for the next run of the body, over the steps of a slice."""
        self.step, self.probing = step, probing
        self.run += 1
        self._names.clear()
        self._num_states_seen = 0

    def end_run(self) -> None:
        """Check a run of the body; decide after the first whether the loop simulates."""
        if self.run == 1:
            if not self.simulating and not any(term.kind == "observed" for term in self.terms[0]):
                self._begin_simulation()
        elif not self.simulating and self._num_states_seen != len(self.sites):
            raise ValueError(
                f"loop {self.name!r}: expected the state sites {[site.name for site in self.sites]} of the first step "
                f"at the later steps too, got {self._num_states_seen} of them"
            )

    # Messages

    def _pyro_sample(self, msg: Any) -> None:
        if self.reuse_subsample(msg):
            return
        name, fn = msg["name"], msg["fn"]
        if not isinstance(fn, TorchDistributionMixin):
            raise TypeError(f"site {name!r}: expected a Pyro distribution, got {type(fn).__name__}")
        if name in self._names:
            raise ValueError(f"site {name!r} is sampled twice in one step of loop {self.name!r}")
        self._names.add(name)
        refuse_intervention(self.name, name)
        msg["stop"] = msg["done"] = True
        if not msg["is_observed"]:
            self.take_path(msg, name)
        event_dim = len(fn.event_shape)
        deterministic = msg["infer"].get("_deterministic")
        if deterministic and event_dim == msg["value"].dim():
            event_dim = 0  # Pyro's default takes all dimensions for event dimensions
        self._shapes[name] = (msg["cond_indep_stack"], event_dim)
        if deterministic:
            self._when_simulating(lambda: self._select(plain(msg["value"]), event_dim), name)
        elif msg["is_observed"]:
            self._observe(msg)
        elif self.simulating and self.run > 1:
            msg["value"] = self._draw(fn)
            self.remember(name, msg["value"])
        elif fn.has_enumerate_support:
            self._enumerate(msg)
        else:
            self._latent = name
            self._refuse_latent(name)
            if not self.simulating:
                self._begin_simulation()
            msg["value"] = self._draw(fn)
            self.remember(name, msg["value"])

    def _observe(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if self.simulating and self._latent is not None:
            raise ValueError(_mixed_message(self.name, self._latent, name))
        if self.simulating:
            raise ValueError(
                f"loop {self.name!r}: expected something observed at the first step, as site {name!r} is at the later "
                "ones; without, the loop simulates. A factor of zero is enough: pyro.factor('start', torch.zeros(()))"
            )
        value = plain(torch.as_tensor(msg["value"]))
        read = self.read_mask(msg["mask"])
        if read is not None and (read.dim() >= -self.layout.leftmost or isinstance(fn, Unit)):
            read = None
        log_prob = statewise.log_prob(fn, value, None if read is None else plain(read))
        if isinstance(msg["mask"], Tensor) or msg["mask"] is False:
            log_prob = scale_and_mask(log_prob, mask=msg["mask"])
        self._record(msg, "observed", log_prob)
        if self.run == 1 and isinstance(msg["value"], Tensor):
            msg["value"] = track(plain(msg["value"]), Mark(self, name, "observed", 1))

    def _enumerate(self, msg: Any) -> None:
        name, fn, index = msg["name"], msg["fn"], self._num_states_seen
        if len(fn.batch_shape) > self.layout.num_batch_dims + 2 * max(1, len(self.sites)):
            raise ValueError(
                f"site {name!r}: expected plates opened in the body of loop {self.name!r} at most {_MARGIN} "
                f"dimensions to the left of those around it, got batch shape {tuple(fn.batch_shape)}; to pick a row of "
                "per-step matrices by a state, write pyro.ops.indexing.Vindex(matrices)[..., z, :]"
            )
        support = fn.enumerate_support(expand=False)
        num_states = support.shape[0]
        support = support.reshape(num_states, *fn.event_shape)
        if self.run == 1:
            self.sites.append(StateSite(name, support))
            self.layout.sizes.append(num_states)
        else:
            self._check_same_site(index, name, num_states)
        # In the first run the number of sites is not known yet, and not needed.
        dim = self.layout.dim(index, int(self.run))
        self._num_states_seen += 1
        value = support.reshape((num_states,) + (1,) * (-dim - 1) + fn.event_shape)
        if isinstance(fn, Categorical):
            # All values are wanted, and the logits are just that.
            logits = plain(fn.logits).movedim(-1, 0)
            log_prob = logits.reshape((num_states,) + (1,) * (-dim - logits.dim()) + logits.shape[1:])
        else:
            log_prob = fn.log_prob(value)
        self._record(msg, "state", log_prob)
        if self.run == 1:
            self._when_simulating(lambda: self._draw_state(fn, support, dim), name)
        msg["value"] = track(value, Mark(self, name, "state", int(self.run)))

    def _record(self, msg: Any, kind: Any, log_prob: Tensor) -> None:
        if self.probing:
            return
        plates = frozenset(frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized)
        term = Term(msg["name"], kind, plain(log_prob), plates, msg["scale"])
        self.terms[0 if self.run == 1 else 1].append(term)

    def _check_same_site(self, index: int, name: str, num_states: int) -> None:
        if index >= len(self.sites) or self.sites[index].name != name:
            raise ValueError(
                f"loop {self.name!r}: expected the state sites {[site.name for site in self.sites]} of the first step "
                f"in the same order at the later steps, got {name!r}; a site's name must not contain the step"
            )
        expected = len(self.sites[index].support)
        if num_states != expected:
            raise ValueError(
                f"site {name!r} in loop {self.name!r}: expected {expected} states at the later steps as at the first, "
                f"got {num_states}"
            )

    def _refuse_latent(self, name: str) -> None:
        observed = [term.site for terms in self.terms for term in terms if term.kind == "observed"]
        if observed:
            raise ValueError(_mixed_message(self.name, name, observed[0]))

    # The factor

    def potentials(self) -> Potentials:
        """The potentials of the recorded sites.

        Raises:
            ValueError: the body has no state site.
        """
        if not self.sites:
            raise ValueError(
                f"loop {self.name!r}: expected at least one unobserved discrete state site in the body, got none; "
                "without a state the steps are independent: use pyro.plate"
            )
        first, rest = self.terms
        return assemble(first, rest, self.num_steps, self.lengths, self.layout, tuple(self.sites))

    def leave_factor(self) -> None:
        """Put log p(observations | everything else) into the program, as a site named like the loop."""
        potentials = self.potentials()
        try:
            log_z = ops.log_partition(
                potentials.initial, potentials.transition, potentials.observation, lengths=potentials.lengths
            )
        except ValueError as error:
            if bad := self._sites_not_finite():
                raise ValueError(f"loop {self.name!r}: site(s) {bad} broke: {error}") from error
            raise
        # Compiled kernels do not hand on what Pyro knows of a tensor's dependencies.
        known = get_provenance((potentials.initial, potentials.transition, potentials.observation))
        log_factor = potentials.restore_time(track_provenance(log_z, known)) * potentials.scale
        self._check_enumerated_around(log_factor, potentials.chains)
        self._check_plates(log_factor, potentials.chains)
        if am_i_wrapped():
            unit = Unit(log_factor)
            with inside_plates(self._shapes[self.sites[0].name][0]):
                pyro.sample(self.name, unit, obs=unit.sample(), infer={"pyrohmm_potentials": potentials})  # type: ignore[typeddict-unknown-key]
            self._declare_dims(potentials.chains)

    def _sites_not_finite(self) -> list[str]:
        """The sites of the body whose log-probability is somewhere NaN or +inf."""
        terms = [term for terms in self.terms for term in terms]
        return list(dict.fromkeys(term.site for term in terms if not (term.log_prob < torch.inf).all()))

    def _check_enumerated_around(self, log_factor: Tensor, chains: frozenset[int]) -> None:
        """The factor, summed over all else, must not depend on values that differ within a plate it is not in."""
        for dim, (name, plates) in enumerated_around().items():
            if log_factor.dim() >= -dim and log_factor.shape[dim] > 1 and not plates <= chains:
                raise ValueError(
                    f"site {name!r} is enumerated separately along dimension(s) {sorted(plates - chains)}, along "
                    f"which loop {self.name!r} has one chain of states, that depends on it: they cannot be summed out "
                    f"one after the other. Put the loop into the same plate, let a guide sample {name!r}, or use "
                    "vectorized=False"
                )

    def _check_plates(self, log_factor: Tensor, chains: frozenset[int]) -> None:
        """Refuse sequences in a dimension without a plate, beside plates: Pyro would count them once a plate entry."""
        declared = chains | {loop.dim for loop in _PYRO_STACK if isinstance(loop, LoopMessenger)}
        for dim in range(max(min([0, *chains]), -log_factor.dim()), 0):
            if log_factor.shape[dim] > 1 and dim not in declared:
                raise ValueError(
                    f"loop {self.name!r}: expected size 1 at dimension {dim}, where there is no plate, got "
                    f"{log_factor.shape[dim]}; the plates are at dimensions {sorted(chains)}, time is at {self.dim}"
                )

    def _declare_dims(self, declared: frozenset[int]) -> None:
        """Let a site of zero log-probability tell Pyro of the leftmost dimension in use, where no plate does."""
        used = min([self.dim, *(dim for terms in self.terms for term in terms for dim in term.plates)])
        if used < min([0, *declared]):
            with IndepMessenger(f"_{self.name}_dims", 1, used):
                pyro.factor(f"_{self.name}_dims", torch.zeros(()))

    # Simulation

    def _begin_simulation(self) -> None:
        self.simulating = True
        for draw in self._pending:
            draw()
        self._pending.clear()

    def _when_simulating(self, draw: Callable[[], Tensor], name: str) -> None:
        """Remember a site's simulated value, now or as soon as it is known that the loop simulates."""
        if self.simulating:
            self.remember(name, draw())
        elif self.run == 1:
            self._pending.append(lambda: self.remember(name, draw()))

    def _draw_state(self, fn: TorchDistributionMixin, support: Tensor, dim: int) -> Tensor:
        value = self._draw(fn)
        event_dim = len(fn.event_shape)
        matches = (value.unsqueeze(-1 - event_dim) == support).unsqueeze(-1).flatten(-1 - event_dim).all(-1)
        self._drawn[dim] = matches.int().argmax(-1)
        return value

    def _draw(self, fn: TorchDistributionMixin) -> Tensor:
        """Draw a site for all enumerated values of the states, and select those drawn before."""
        plates = [1] * self._rank
        for dim, size in self.plates.items():
            plates[dim] = size
        with torch.no_grad():
            value = plain(fn.expand(torch.broadcast_shapes(fn.batch_shape, plates)).sample())
        return self._select(value, len(fn.event_shape))

    def _select(self, value: Tensor, event_dim: int) -> Tensor:
        """The entries of a value, computed for all enumerated states, that belong to the drawn ones."""
        # From the leftmost dimension on, so that what lies left of the next one is gone.
        for dim, index in sorted(self._drawn.items()):
            axis = value.dim() - event_dim + dim
            if axis < 0:
                continue
            value = value.reshape(value.shape[axis:])
            if value.shape[0] > 1:
                batch, event = value.shape[1 : value.dim() - event_dim], value.shape[value.dim() - event_dim :]
                batch = torch.broadcast_shapes(batch, index.shape)
                picked = index.expand(batch)[(None, ..., *(None,) * event_dim)].expand(1, *batch, *event)
                value = value.expand(-1, *batch, *event).gather(0, picked)
            value = value[0]
        while value.dim() - event_dim > self._rank and value.shape[0] == 1:
            value = value[0]
        return value

    @property
    def _rank(self) -> int:
        """Batch dimensions of a simulated value: time and the plates around the loop."""
        return -min([self.dim, *self.plates])

    def leave_simulated(self) -> None:
        """Put the simulated sequences into the program, as deterministic sites with the full time axis."""
        self.step = slice(0, self.num_steps)
        read = self.read_mask(None)
        for name, values in self.simulated.items():
            frames, event_dim = self._shapes[name]
            value = torch.cat(torch.broadcast_tensors(*values), self.dim - event_dim)
            if read is not None:
                padding = -1 if any(site.name == name for site in self.sites) else 0
                value = torch.where(read[(..., *(None,) * event_dim)], value, torch.full_like(value, padding))
            with IndepMessenger(self.name, self.num_steps, self.dim), inside_plates(frames):
                pyro.deterministic(name, value, event_dim=event_dim)


def _mixed_message(loop: str, latent: str, observed: str) -> str:
    return (
        f"site {latent!r} in loop {loop!r} is neither observed nor enumerable, while site {observed!r} is observed: "
        f"only discrete states can be summed out. Let a guide sample {latent!r} as one site with the whole time axis, "
        f"and run the program against it (any ELBO does, and pyrohmm.posterior(model, guide)); or sample {latent!r} "
        f"before the loop and slice it in the body: pyro.sample({latent!r}, ..., obs=path[:, t]); or give it data. "
        "With nothing observed at all the loop simulates"
    )
