"""Fitting by expectation maximisation."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm.data import Sequences
from pyrohmm.infer.checkpoint import load_checkpoint, save_checkpoint
from pyrohmm.infer.common import (
    check_counts,
    check_modes,
    check_positive,
    check_tolerance,
    interrupts_between_steps,
    mode,
)
from pyrohmm.infer.expectation import Assignment, expect
from pyrohmm.infer.history import History
from pyrohmm.infer.initialization import Method, starts
from pyrohmm.infer.maximization import PARTS, GradientAscent, accumulate, closed_parts, collect, maximize
from pyrohmm.infer.minibatches import Minibatches
from pyrohmm.infer.side_by_side import can_stack, stack, unstack
from pyrohmm.infer.supply import Supply
from pyrohmm.models import HMM
from pyrohmm.models.isolation import random_state, seeded, set_random_state
from pyrohmm.nn.part import Events, Statistics

# Numbers in the largest tensors of models that are fitted side by side.
_MOST = 2**21

StepSize = float | Callable[[int], float]


def fit_em(
    model: HMM,
    data: Sequences | Iterable[Sequences],
    *,
    steps: int = 100,
    tolerance: float = 1e-6,
    restarts: int = 1,
    trial_steps: int | None = None,
    initialization: Method | None = None,
    assignment: Assignment = "soft",
    batch_size: int | None = None,
    step_size: StepSize | None = None,
    gradient_steps: int = 10,
    learning_rate: float = 0.01,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    progress: bool = True,
) -> History:
    r"""Fit the parameters of a model by expectation maximisation (Baum-Welch), exactly or, where need be, by gradients.

    Each step finds the posterior over the state paths and then the parameters that make

    .. math:: \mathrm{E}_{z \mid x, \theta_{old}}[\log p(x, z \mid \theta)] + \log p(\theta)

    largest. Tables (`nn.Transition`, `nn.GaussianEmission`, ...) have this maximum in closed form; networks, and
    whatever shares parameters with one, make `gradient_steps` towards it. Both can be mixed in one model. With all data
    in each step the objective, log p(x) + log p(theta), never falls (but for the rounding of the model's dtype).

    Priors of parts (`prior=`), masks of edges, labels (with `use_labels`), `data.allowed` and what is missing are
    honoured. Parameters with `requires_grad` off stay as they are. The recursions run in the dtype of the model, sums
    over steps in float64.

    Ctrl-C ends the fit after the present step as if its steps were done: what was learned is kept, and the checkpoint
    written. A second one ends it at once, possibly with some parts a step ahead of others.

    Args:
        model: a `pyrohmm.models.HMM`, changed in place.
        data: the sequences (a subset of a larger set counts on its own); or, if they are larger than memory, an
            iterable of them that can be gone through many times, such as one that reads a file after the other.
        steps: the largest number of steps, each through all data (with `step_size`, on one minibatch).
        tolerance: the fit ends once a step changes the objective by less than this, in nats for each observed time
            step; 0 for all steps, whatever they change. Not looked at with `step_size`.
        restarts: number of fits from different starts, of which the best is kept. Models of tables are fitted side by
            side, as one, unless the data are large. With `initialization` None the first start is the model as it is;
            in the others emissions are "random", and networks drawn anew.
        trial_steps: after this many steps from each start only the best goes on, so that 20 restarts with trials of 5
            steps cost as much as 100 more steps; None for all to go on.
        initialization: how emissions are set at the start, see `pyrohmm.infer.initialize`: "kmeans", "random", or None
            to start from the model's parameters.
        assignment: "soft" for EM; "hard" for Viterbi training, which takes the best path for certain (and maximises
            log p(x, z)); "labels" for the given path: supervised fitting, for which one step is enough if all parts
            are tables without hidden variables of their own.
        batch_size: sequences in memory at once, in the recursions. Statistics are added up over them, so the result is
            the same, but for networks, which make their steps on each.
        step_size: for online EM (Cappe and Moulines 2009): after each minibatch the statistics are (1 - r) times the
            former ones plus r times the minibatch's, scaled up to all data. A number r in (0, 1], or a function of the
            number of the step, from 1, e.g. `lambda step: (step + 1) ** -0.6`. Needs `batch_size`, or an iterable
            whose items are the minibatches.
        gradient_steps: steps of Adam in each M-step, for parts without a closed form.
        learning_rate: of Adam.
        seed: of starts and minibatches. The same seed gives the same numbers.
        checkpoint: a file. If it exists, the fit goes on from there, to the same numbers as if it had not stopped.
            `steps` may be raised to go on with a finished fit.
        checkpoint_every: steps between writings.
        progress: whether to show a progress bar.

    Returns:
        `History`: `loss` is minus the objective before each step, in nats for each observed time step (with
        `step_size`, an estimate from the minibatch), of the best restart; `restarts` has the last of each restart;
        `notes` tells of states without data or with a variance at its bound.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, nothing is observed, a sequence is
            impossible under the model, a parameter has a `PyroSample` prior (use `prior=` of the part, or `fit_svi`
            with a guide), or the checkpoint does not belong to this fit.
        FloatingPointError: the objective is NaN.

    Reference:
        Baum, Petrie, Soules and Weiss (1970), "A maximization technique occurring in the statistical analysis of
        probabilistic functions of Markov chains"; Dempster, Laird and Rubin (1977), "Maximum likelihood from
        incomplete data via the EM algorithm"; of `trial_steps`: Biernacki, Celeux and Govaert (2003), "Choosing
        starting values for the EM algorithm".

    Example:
        >>> from pyrohmm.nn import GaussianEmission
        >>> truth = HMM(GaussianEmission(2, 1, loc=[[-2.0], [2.0]]))
        >>> data = truth.simulate(20, 50, seed=0)
        >>> model = HMM(GaussianEmission(2, 1))
        >>> history = fit_em(model, data, restarts=3, progress=False)
        >>> history.stop_reason, [round(mean) for mean in sorted(model.emission.loc.flatten().tolist())]
        ('converged', [-2, 2])
    """
    if not isinstance(model, HMM):
        raise TypeError(f"model: expected a pyrohmm.models.HMM, got {type(model).__name__}")
    whole = isinstance(data, Sequences)
    if not whole and (isinstance(data, Iterator) or not isinstance(data, Iterable)):
        raise TypeError(
            "data: expected pyrohmm.data.Sequences or an iterable of them that can be gone through again, "
            f"got {type(data).__name__}"
        )
    check_counts(
        steps=steps,
        restarts=restarts,
        trial_steps=trial_steps,
        batch_size=batch_size,
        gradient_steps=gradient_steps,
        checkpoint_every=checkpoint_every,
    )
    check_positive(learning_rate=learning_rate)
    check_tolerance(tolerance)
    if assignment not in ("soft", "hard", "labels"):
        raise ValueError(f"assignment: expected 'soft', 'hard' or 'labels', got {assignment!r}")
    if isinstance(step_size, int | float) and not 0 < step_size <= 1:
        raise ValueError(f"step_size: expected a number in (0, 1] or a function of the step, got {step_size!r}")
    if step_size is not None and whole and batch_size is None:
        raise ValueError("step_size: expected None since there are no minibatches (batch_size)")
    if not whole and batch_size is not None:
        raise ValueError(f"batch_size: expected None since the items of data are the batches, got {batch_size}")
    if not whole and (initialization is not None or restarts > 1):
        raise ValueError("initialization, restarts: expected None and 1 since data are not in memory")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in an existing folder, got {path}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected at least one trainable parameter, got none")
    check_modes(model)

    supply = Supply(data, batch_size, model._check)
    settings = {
        "algorithm": "EM",
        "restarts": restarts,
        "trial_steps": trial_steps,
        "initialization": initialization,
        "assignment": assignment,
        "batch_size": batch_size,
        "step_size": "a function" if callable(step_size) else step_size,
        "gradient_steps": gradient_steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "num_sequences": supply.num_sequences,
        "num_observed": supply.num_observed,
    }
    models = starts(model, supply.first, restarts, initialization, seed)

    def begin(some: HMM) -> "_Fit":
        return _Fit(some, supply, assignment, batch_size, step_size, tolerance, gradient_steps, learning_rate, seed)

    # As one where that is possible, and fast: not more of them than stay near the processor together.
    together = 1
    if restarts > 1 and can_stack(model):
        steps_in_memory = (
            supply.first.x.shape[:2].numel() if batch_size is None else batch_size * supply.first.num_steps
        )
        together = max(1, _MOST // (steps_in_memory * model.num_states))
    groups = [models[i : i + together] for i in range(0, restarts, together)]
    fits = [begin(stack(group) if len(group) > 1 else group[0]) for group in groups]
    rows = [(fit, row) for fit in fits for row in range(fit.num_models)]
    # The number of the start that goes on after the trial, and its fit.
    chosen: tuple[int, _Fit] | None = None
    trial = None if trial_steps is None or restarts == 1 or trial_steps >= steps else trial_steps
    began = time.perf_counter()

    def choose(number: int) -> tuple[int, _Fit]:
        fit, row = rows[number]
        return number, fit.one(row, begin(models[number])) if fit.model.side_by_side else fit

    def advance(fit: _Fit, limit: int) -> None:
        while fit.advance(limit):
            bar.set_postfix({"loss": f"{fit.best_loss:.4f}"}, refresh=False)
            bar.update()
            if fit.num_steps % checkpoint_every == 0:
                save()
            interrupt.check()

    def save() -> None:
        if path is not None and all(fit.whole for fit in (*fits, *(chosen or ())[1:])):
            seconds = time.perf_counter() - began
            last = chosen and (chosen[0], chosen[1].state())
            fitted = {"fits": [fit.state() for fit in fits], "chosen": last}
            state = {**fitted, "seconds": seconds, "random": random_state(device)}
            save_checkpoint(path, state, settings)

    interrupted = False
    device = supply.first.x.device
    with (
        seeded(seed, device),
        interrupts_between_steps() as interrupt,
        mode([fit.model for fit in fits] + models, training=False),
        tqdm(total=steps + (trial or steps) * (len(fits) - 1), desc="EM", disable=not progress) as bar,
    ):
        if path is not None and path.exists():
            saved = load_checkpoint(path, settings)
            for fit, state in zip(fits, saved["fits"], strict=True):
                fit.load(state)
            if saved["chosen"] is not None:
                chosen = choose(saved["chosen"][0])
                chosen[1].load(saved["chosen"][1])
            set_random_state(device, saved["random"])
            began -= saved["seconds"]
            bar.update(sum(fit.num_steps for fit in fits))
        try:
            if chosen is None:
                for fit in fits:
                    advance(fit, trial or steps)
            if trial is not None:
                losses = [fit.losses[row][-1] for fit, row in rows]
                chosen = chosen or choose(losses.index(min(losses)))
                advance(chosen[1], steps)
        except KeyboardInterrupt:
            interrupted = True
        save()
    if chosen is not None:
        rows[chosen[0]] = chosen[1], 0
    return _finish(model, rows, interrupted, time.perf_counter() - began)


def _finish(model: HMM, rows: list[tuple["_Fit", int]], interrupted: bool, seconds: float) -> History:
    """Put the best parameters into the model, and tell what happened; of each start, the fit and the row there."""
    losses = [fit.losses[row][-1] if fit.losses[row] else math.inf for fit, row in rows]
    best = min(range(len(losses)), key=losses.__getitem__)
    fit, row = rows[best]
    if losses[best] == math.inf and fit.impossible:
        raise ValueError(
            f"data: expected sequences that are possible under the model, got impossible ones at {fit.impossible[:10]} "
            "(a mask of states or edges, labels, values outside of the emission's support)"
        )
    if fit.model.side_by_side:
        unstack(fit.model, row, model)
    elif fit.model is not model:
        model.load_state_dict(fit.model.state_dict())
    reason = "interrupted" if interrupted else "converged" if fit.converged else "finished"
    return History(loss=fit.losses[row], stop_reason=reason, seconds=seconds, restarts=losses, notes=fit.notes[row])


class _Fit:
    """One model, or several side by side, with their statistics and what has happened to them."""

    def __init__(
        self,
        model: HMM,
        supply: Supply,
        assignment: Assignment,
        batch_size: int | None,
        step_size: StepSize | None,
        tolerance: float,
        gradient_steps: int,
        learning_rate: float,
        seed: int,
    ):
        self.model, self.supply = model, supply
        self.assignment: Assignment = assignment
        self.batch_size, self.step_size, self.tolerance = batch_size, step_size, tolerance
        self.closed = closed_parts(model)
        rest = [name for name in PARTS if name not in self.closed]
        self.ascent = GradientAscent(model, rest, gradient_steps, learning_rate) if rest else None
        self.num_models = next(iter(model.parameters())).shape[0] if model.side_by_side else 1
        self.has_prior = any(getattr(part, "has_prior", False) for part in model.parts)
        self.losses: list[list[float]] = [[] for _ in range(self.num_models)]
        self.notes: list[list[str]] = [[] for _ in range(self.num_models)]
        self.running: dict[str, Statistics] = {}
        # Sequences that no model makes possible; such a fit goes nowhere.
        self.impossible: list[int] = []
        # Whether the gradient steps of the last two steps were.
        self.taken_back = [False, False]
        # Whether the parameters are those after as many steps as there are losses: not within a step.
        self.whole = True
        self.stream = None
        if step_size is not None and supply.whole is not None:
            self.stream = Minibatches(supply.whole, batch_size, seed)

    @cached_property
    def products(self) -> Any:
        """What all steps need of all data, where it is worth while; made when `load` has had its say on the model."""
        data, emission = self.supply.whole, self.model.emission
        if data is None or self.batch_size is not None or data.entries is not None or "emission" not in self.closed:
            return None
        make = getattr(emission, "products", None)
        return None if make is None else make(data.x.flatten(0, 1), data.observed.flatten())

    def one(self, row: int, alone: "_Fit") -> "_Fit":
        """What became of one of the models side by side, as the fit of that model alone."""
        unstack(self.model, row, alone.model)
        alone.losses, alone.notes = [list(self.losses[row])], [list(self.notes[row])]
        alone.impossible = list(self.impossible)
        alone.running = {
            name: {key: value[row] for key, value in statistics.items()} for name, statistics in self.running.items()
        }
        if alone.stream is not None and self.stream is not None:
            alone.stream.load(self.stream.state())
        return alone

    @property
    def num_steps(self) -> int:
        """Number of steps done."""
        return len(self.losses[0])

    @property
    def best_loss(self) -> float:
        """The least of the present losses."""
        return min(loss[-1] for loss in self.losses)

    @property
    def converged(self) -> bool:
        """Whether the last step changed no loss by the tolerance."""
        # After gradient steps were taken back, smaller ones are next.
        if self.step_size is not None or self.tolerance == 0 or self.num_steps < 2 or any(self.taken_back):
            return False
        # A restart that found a sequence impossible has no finite loss, and goes nowhere.
        return not any(abs(loss[-2] - loss[-1]) >= self.tolerance for loss in self.losses)

    def advance(self, steps: int) -> bool:
        """Make a step unless there were as many, or the fit has converged; whether one was made."""
        if self.num_steps >= steps or self.converged or self.impossible:
            return False
        self.whole = False
        self._step_online() if self.step_size is not None else self._step()
        self.whole = True
        return True

    def _step(self) -> None:
        total: Tensor = torch.zeros(())
        statistics: dict[str, Statistics] = {}
        prior = self._log_prior()
        last = None
        for batch in self.supply:
            if last is not None:
                self._ascend(*last)
            value, weights = self._expect(batch)
            total = total + value
            accumulate(statistics, collect(self.model, self.closed, batch, weights, self.products))
            last = batch, weights
        assert last is not None  # there is a batch
        self._record(-(total + prior) / self.supply.num_observed)
        if self.impossible:
            return
        self._note(maximize(self.model, statistics))
        self._ascend(*last)

    def _log_prior(self) -> Tensor | float:
        return self.model.log_prior().detach().double() if self.has_prior else 0.0

    def _ascend(self, batch: Sequences, weights: Any) -> None:
        """The M-step of the other parts on a batch, which stands for all data."""
        if self.ascent is None or batch.num_observed == 0:
            return
        # Only all data tell for certain whether a step is uphill.
        alone = batch.num_observed == self.supply.num_observed
        scale = self.supply.num_observed / batch.num_observed
        kept = self.ascent(batch, weights, scale=scale, guard=alone)
        self.taken_back = [self.taken_back[-1], not kept]
        if not kept:
            self._tell(0, "gradient steps made the objective smaller, and were taken back")

    def _step_online(self) -> None:
        batch = next(self.stream) if self.stream is not None else self.supply.item(self.num_steps)
        scale = self.supply.num_sequences / len(batch)
        value, weights = self._expect(batch)
        prior = self._log_prior()
        found = collect(self.model, self.closed, batch, weights)
        size: Any = self.step_size(self.num_steps + 1) if callable(self.step_size) else self.step_size
        if not 0 < size <= 1:
            raise ValueError(f"step_size: expected a number in (0, 1] at step {self.num_steps + 1}, got {size!r}")
        for name, statistics in found.items():
            running = self.running.setdefault(name, {})
            for key, new in statistics.items():
                # The first minibatch is all that there is.
                running[key] = (1 - size) * running[key] + size * scale * new if key in running else scale * new
        if batch.num_observed or not self.num_steps:
            self._record(-(scale * value + prior) / max(1.0, scale * batch.num_observed))
        else:
            # Nothing was seen, and nothing is to be told.
            self._record(torch.tensor([losses[-1] for losses in self.losses]))
        if self.impossible:
            return
        self._note(maximize(self.model, self.running))
        if self.ascent is not None:
            self.ascent(batch, weights, scale=scale, guard=False)

    def _expect(self, batch: Sequences) -> tuple[Tensor, Any]:
        """The objective of a batch without the prior, of each model, and the weights of the E-step."""
        labels = None
        if self.assignment == "labels":
            labels = batch.labels
            if labels is None or (labels[batch.valid] < 0).any():
                raise ValueError('data: expected a label at every step since assignment="labels"')
            if (largest := int(labels.max())) >= self.model.num_states:
                raise ValueError(f"data: expected labels below {self.model.num_states}, got {largest}")
        with torch.no_grad():
            potentials = self.model.potentials(batch, products=self.products)
        value, weights = expect(potentials, batch.lengths, self.assignment, labels)
        value = value.reshape(-1, len(batch)) if self.model.side_by_side else value.unsqueeze(0)
        if value.isnan().any():
            raise FloatingPointError(
                f"step {self.num_steps + 1}: the objective is NaN; check the inputs and the networks"
            )
        # Side by side, models may fail at different sequences.
        if (value == -torch.inf).any(-1).all():
            self.impossible += batch.index[(value == -torch.inf).any(0)].tolist()
        return value.double().sum(-1), weights

    def _record(self, losses: Tensor) -> None:
        for history, loss in zip(self.losses, losses.tolist(), strict=True):
            history.append(loss)

    def _note(self, events: dict[str, Events]) -> None:
        for part, found in events.items():
            for text, flags in found.items():
                if flags.any():
                    for row, state in flags.reshape(self.num_models, -1).nonzero().tolist():
                        who = f"state {state}" if flags.shape[-1] == self.model.num_states else "all states"
                        self._tell(row, f"{part}, {who}: {text}")

    def _tell(self, row: int, note: str) -> None:
        if note not in self.notes[row]:
            self.notes[row].append(note)

    def state(self) -> dict[str, Any]:
        """All that `load` needs."""
        return {
            "parameters": copy.deepcopy(self.model.state_dict()),
            "losses": self.losses,
            "notes": self.notes,
            "running": self.running,
            "stream": None if self.stream is None else self.stream.state(),
            "ascent": None if self.ascent is None else self.ascent.state(),
            "taken_back": self.taken_back,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` told."""
        try:
            self.model.load_state_dict(state["parameters"])
        except RuntimeError as error:
            raise ValueError(f"checkpoint: the saved parameters are of another model: {error}") from error
        self.losses, self.notes = state["losses"], state["notes"]
        self.taken_back = state["taken_back"]
        device = next(iter(self.model.parameters())).device
        self.running = {
            name: {key: value.to(device) for key, value in statistics.items()}
            for name, statistics in state["running"].items()
        }
        if self.stream is not None:
            self.stream.load(state["stream"])
        if self.ascent is not None:
            self.ascent.load(state["ascent"])
