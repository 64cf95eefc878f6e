"""Fitting by stochastic variational inference."""

import functools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrohmm.data import Sequences
from pyrohmm.infer.annealing import Annealing, Weight, weight_at
from pyrohmm.infer.checkpoint import load_checkpoint, save_checkpoint
from pyrohmm.infer.common import (
    as_programs,
    check_counts,
    check_modes,
    check_positive,
    check_seed,
    check_sequences,
    mode,
    modules,
)
from pyrohmm.infer.diagnosis import find_not_finite
from pyrohmm.infer.elbo import UnreadELBO
from pyrohmm.infer.history import History
from pyrohmm.infer.minibatches import Minibatches
from pyrohmm.infer.optimizer import ClippedAdam, Schedule, Step
from pyrohmm.infer.parameters import Parameters
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters, random_state, seeded, set_random_state

_LINEAR = Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

Program = Callable[[Sequences], Any]


def fit_svi(
    model: Any,
    data: Sequences,
    guide: Program | None = None,
    *,
    steps: int = 1000,
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    schedule: Schedule | None = None,
    clip_norm: float | None = 10.0,
    validation: Sequences | None = None,
    evaluate_every: int = 50,
    patience: int | None = None,
    num_particles: int = 1,
    vectorize_particles: bool = False,
    annealing: Weight | None = None,
    annealed: Collection[str] | None = None,
    loss: ELBO | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> History:
    """Fit the parameters of a Pyro program, and of its guide, by stochastic variational inference with Adam.

    For a model whose only latent sites are the states of `pyrohmm.markov` loops this is maximum likelihood, by exact
    gradients. The loss is the negative ELBO for each observed time step, in nats; a minibatch gives an estimate of it.
    Over the minibatches of an epoch, in the mean weighted by their sizes, the gradient is that of all data: what is in
    the plate of the sequences counts for those that are not in the minibatch too, what is outside of it once.

    Parameters of modules are changed in place. They are neither looked up nor left in Pyro's parameter store, so that
    models do not get in each other's way; what plain functions declare by `pyro.param` is there as usual. Parameters
    with `requires_grad` off stay as they are. Torch's random state is not touched. Modules are in training mode while
    they are trained, and in eval mode while they are evaluated on the held-out data.

    Ctrl-C ends the fit as if its steps were done: what was learned is kept, and the checkpoint written.

    On a GPU a step does not wait for the device, so that the program runs ahead of it: losses are looked at every
    few steps only, before an evaluation or a checkpoint, and at the end; the lengths of minibatches once an epoch. This
    needs Pyro's validation off (`pyro.enable_validation(False)`), the default loss, and a guide whose sites are
    reparameterised.

    Args:
        model: a Pyro program of `Sequences`, e.g. `pyrohmm.models.HMM`; or an object with `.model` and `.guide`.
        data: the sequences.
        guide: a Pyro program of the same argument. Default: the model's `.guide`, or an empty one.
        steps: number of steps, each on one minibatch.
        batch_size: sequences in a minibatch, drawn without replacement until all were seen. Default: all.
        learning_rate: of Adam, at the first step.
        schedule: of the learning rate: "cosine" (down to 0 at the last step), "exponential" (down to a hundredth), or
            a function of a torch optimiser that returns a torch scheduler, e.g.
            `functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)`; it steps with the fit.
        clip_norm: the largest Euclidean norm of the gradient of the loss; None for any.
        validation: held-out sequences. If given, the parameters at the end are those of the best evaluation.
        evaluate_every: steps between evaluations; there is one after the last step too.
        patience: stop after so many evaluations that were not better than the best one.
        num_particles: draws from the guide for each estimate, with the default loss.
        vectorize_particles: whether they are drawn side by side, in a plate left of all others. The programs must then
            broadcast over it, as those do whose latent sites are inside of the plate of the sequences.
        annealing: of the KL term: the number of steps in which its weight grows from nothing to 1 along a line, or a
            function of the step (from 1) that returns a weight in [0, 1]. It is for the latent sites of the guide, in
            guide and model; observations and the factors of `pyrohmm.markov` loops count in full. The held-out data
            are evaluated with weight 1.
        annealed: the names of the sites it is for. Default: all latent sites of the guide.
        loss: an ELBO of Pyro, e.g. `TraceEnum_ELBO()`. Default: that of `Trace_ELBO`. With
            `RenyiELBO(alpha=0, num_particles=S)` it is the importance-weighted bound of S particles: of each sequence
            if all sites are in its plate, and else (global latent sites, or the factor of priors) one of all sequences
            in a minibatch.
        seed: of the minibatches and of all draws. The same seed gives the same numbers.
        checkpoint: a file. If it exists, the fit goes on from there, to the same numbers as if it had not stopped.
            It is written every so often and at the end. `steps` may be raised to go on with a finished fit.
        checkpoint_every: steps between writings.
        progress: whether to show a progress bar.

    Returns:
        `History`; its `notes` name parameters of modules that no run of the programs met, which Pyro does not train: a
        method that reads them (but `forward`) has to be a `pyro.nn.pyro_method`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, nothing is observed or trainable, or
            the checkpoint does not belong to this fit.
        FloatingPointError: the loss or its gradient is not finite. The parameters are those before that step, also
            where the loss is looked at some steps later. The step is run once more, to name the sites of the programs,
            and the sequences, where it breaks. What Pyro's validation refuses is a ValueError, with these names in its
            notes.

    Reference:
        Kingma and Welling (2014), "Auto-encoding variational Bayes"; for annealing Bowman et al. (2016), "Generating
        sentences from a continuous space"; for the importance-weighted bound Burda, Grosse, Salakhutdinov (2016),
        "Importance weighted autoencoders".

    Example:
        >>> from pyrohmm.models import HMM
        >>> from pyrohmm.nn import BernoulliEmission
        >>> data = HMM(BernoulliEmission(2, 2, probs=[[0.1, 0.9], [0.8, 0.3]])).simulate(50, 20, seed=0)
        >>> model = HMM(BernoulliEmission(2, 2, generator=torch.Generator().manual_seed(0)))
        >>> history = fit_svi(model, data, steps=100, learning_rate=0.1, progress=False)
        >>> history.num_steps, history.loss[-1] < history.loss[0]
        (100, True)
    """
    check_sequences("data", data)
    if validation is not None:
        check_sequences("validation", validation)
    elif patience is not None:
        raise ValueError(f"patience: expected None since there is no validation, got {patience}")
    check_counts(
        steps=steps,
        batch_size=batch_size,
        evaluate_every=evaluate_every,
        patience=patience,
        num_particles=num_particles,
        checkpoint_every=checkpoint_every,
    )
    check_positive(learning_rate=learning_rate, clip_norm=clip_norm)
    if loss is not None and not isinstance(loss, ELBO):
        raise TypeError(f"loss: expected a pyro.infer.ELBO, got {type(loss).__name__}")
    particles = (("num_particles", num_particles, 1), ("vectorize_particles", vectorize_particles, False))
    for name, value, default in particles:
        if loss is not None and value != default:
            raise ValueError(f"{name}: expected {default} since the given loss has its own, got {value}")
    if not callable(annealing):
        check_counts(annealing=annealing)
    if annealed is not None and (annealing is None or isinstance(annealed, str)):
        raise ValueError(
            f"annealed: expected names of sites{'' if annealing else ', with annealing='}, got {annealed!r}"
        )
    check_seed(seed)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in an existing folder, got {path}")
    program, guide = as_programs(model, guide)

    roots = modules(program, guide)
    for root in roots:
        if isinstance(root, HMM) and root.point_parameters:
            check_modes(root)
    elbo = loss or UnreadELBO(num_particles=num_particles, vectorize_particles=vectorize_particles)
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": "a function" if callable(schedule) else schedule,
        "clip_norm": clip_norm,
        "loss": type(elbo).__name__,
        "num_particles": num_particles,
        "vectorize_particles": vectorize_particles or None,  # None as checkpoints have it that do not know of it
        "annealing": "a function" if callable(annealing) else annealing,
        "annealed": None if annealed is None else sorted(annealed),
        "num_sequences": len(data),
        "num_observed": data.num_observed,
    }
    optimizer = functools.partial(
        ClippedAdam, learning_rate=learning_rate, schedule=schedule, steps=steps, clip_norm=clip_norm
    )
    with own_parameters(*roots), mode(roots, training=True):
        kl = None if annealing is None else Annealing(program, guide, annealed)
        kl_weight = functools.partial(weight_at, annealing=annealing)
        fit = _Fit((program, guide), kl, kl_weight, roots, data, validation, optimizer, elbo, batch_size, seed)
        with seeded(seed, data.x.device), fit.own_gradients():
            if path is not None and path.exists():
                fit.load(load_checkpoint(path, settings))
            history, began = fit.history, time.perf_counter() - fit.history.seconds

            def save() -> None:
                fit.read()
                history.seconds = time.perf_counter() - began
                if path is not None and (state := fit.state()) is not None:
                    save_checkpoint(path, state, settings)

            history.stop_reason = "finished"
            with tqdm(total=steps, initial=fit.num_steps, desc="SVI", disable=not progress) as bar:
                try:
                    while True:
                        if fit.num_steps % evaluate_every == 0 or fit.num_steps >= steps:
                            fit.evaluate()
                        if fit.num_steps >= steps:
                            break
                        if patience is not None and history.evaluations_since_best >= patience:
                            history.stop_reason = "patience"
                            break
                        fit.step()
                        bar.set_postfix(fit.progress(), refresh=False)
                        bar.update()
                        if path is not None and fit.num_steps % checkpoint_every == 0:
                            save()
                except KeyboardInterrupt:
                    history.stop_reason = "interrupted"
            save()
            if fit.best is not None:
                fit.parameters.load(fit.best)
            if unmet := fit.unmet():
                history.notes = [f"not trained, since the programs did not meet them: {', '.join(unmet)}"]
    return history


class _Begun(NamedTuple):
    """A step that nobody looked at yet: the weight of its KL, and the place that it began from."""

    step: Step
    kl_weight: float
    place: dict[str, Any]


class _Fit:
    """A fit: what it changes and remembers, and how it makes a step.

    A step asks the device for no number. `read` does, for all steps since it was called last.
    """

    def __init__(
        self,
        programs: tuple[Program, Program],
        annealing: Annealing | None,
        kl_weight: Callable[[int], float],
        modules: Sequence[nn.Module],
        data: Sequences,
        validation: Sequences | None,
        optimizer: Callable[[Mapping[str, Tensor]], ClippedAdam],
        elbo: ELBO,
        batch_size: int | None,
        seed: int,
    ):
        self.programs = programs
        self.annealing, self.kl_weight = annealing, kl_weight
        self.modules, self.validation, self.seed = modules, validation, seed
        self.elbo: Any = elbo  # its type does not tell of the methods that all its kinds have
        self.device = data.x.device
        self.read_every = _read_every(self.device)
        self.batches = Minibatches(data, batch_size, seed)
        self.history = History()
        self.best: dict[str, Any] | None = None
        self._unread: list[_Begun] = []
        self._first_step = 0
        # The last place between two steps, where a fit can be taken up again: it must not change with a broken step.
        self._place: tuple[int, dict[str, Any]] | None = None
        self._trained = programs if annealing is None else annealing.programs
        # What makes the sum over a whole set the loss for each observed step of these data.
        self._scale = len(data) / (data.num_total * data.num_observed)
        # Into the programs with it, if the loss is linear in their log-probabilities.
        linear = isinstance(elbo, _LINEAR) and not isinstance(elbo, TraceTailAdaptive_ELBO)
        self._scaled = [poutine.scale(fn, self._scale) for fn in self._trained] if linear else []
        self._found: dict[str, Tensor] = {}
        self._frozen = {p for module in modules for p in module.parameters() if not p.requires_grad}

        for module in modules:
            for parameter in module.parameters():
                # Of another one, Pyro's store would hold and train a copy.
                parameter.data = parameter.data.contiguous()
        # One run first, for what only a run makes or finds out: parameters of guides, the plates that a loss asks for.
        first = data[:batch_size].trim()
        noting = self._noting("the first run", self._evaluating(), first)
        with self._evaluating(), noting, poutine.trace(param_only=True) as capture:
            self.elbo.loss(*self._trained, first)
        trained = self._trainable(capture.trace)
        if not trained:
            raise ValueError("model: expected at least one trainable parameter, got none")
        self.parameters = Parameters(modules, self._found)
        self.adam = optimizer(trained)

    def _trainable(self, trace: poutine.Trace) -> dict[str, Tensor]:
        """The parameters to be trained that a run met, and no run before it."""
        sites: dict[str, Any] = {name: site for name, site in trace.nodes.items() if name not in self._found}
        found = {name: site["value"].unconstrained() for name, site in sites.items()}
        self._found |= found
        for parameter in self._frozen.intersection(found.values()):
            # Pyro asks for the gradient of every parameter that it meets.
            parameter.requires_grad_(False)
        return {name: parameter for name, parameter in found.items() if parameter not in self._frozen}

    def unmet(self) -> list[str]:
        """The names of parameters of modules that are to be trained, but that no run of the programs met."""
        met = {id(parameter) for parameter in self._found.values()}
        return [
            name
            for module in self.modules
            for name, parameter in module.named_parameters()
            if parameter not in self._frozen and id(parameter) not in met
        ]

    @property
    def num_steps(self) -> int:
        """Number of steps done, whether or not they were read."""
        return self.history.num_steps + len(self._unread)

    def step(self) -> None:
        """Make a step on the next minibatch."""
        place = self._here() if self._place is None else self._place[1]
        batch, kl_weight = next(self.batches), self.kl_weight(self.num_steps + 1)
        if self.annealing is not None:
            self.annealing.weight = kl_weight
        noting = self._noting(f"step {self.num_steps + 1}", self._at(place, kl_weight), batch)
        with noting, poutine.trace(param_only=True) as capture:
            loss = self.elbo.loss_and_grads(*(self._scaled or _share(self._trained, batch)), batch)
        if late := self._trainable(capture.trace):
            self.adam.add(late)
        if not self._scaled:
            scale = self._scale * batch.num_total / len(batch)
            loss = scale * loss
            for parameter in self._found.values():
                if parameter.grad is not None:
                    parameter.grad *= scale
        self._unread.append(_Begun(self.adam.step(loss), kl_weight, place))
        self._place = self.num_steps, self._here()
        if len(self._unread) >= self.read_every:
            self.read()

    def read(self) -> None:
        """Put the steps that nobody looked at yet into the history.

        Raises:
            FloatingPointError: the loss or the gradient of one of them was not finite.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        numbers = iter(torch.cat([begun.step.numbers for begun in unread]).tolist())
        for step, kl_weight, place in unread:
            loss, *norms = islice(numbers, 1 + len(step.names))
            bad = [name for name, norm in zip(step.names, norms, strict=True) if not math.isfinite(norm)]
            if bad or not math.isfinite(loss):
                what = f"the gradient is not finite, in {bad}" if math.isfinite(loss) else f"the loss is {loss}"
                # After a step that broke the parameters stay as they were: it can be run again some steps later too.
                with self._at(place, kl_weight):
                    found = self._where(next(self.batches))
                raise FloatingPointError(
                    f"step {self.history.num_steps + 1}: {what}{found and ': '}{found}. The parameters are those "
                    "before this step. Try a smaller learning_rate or clip_norm; scale the data; check that no "
                    "sequence is impossible under the model (a mask of states or edges, labels, values outside of the "
                    "emission's support)"
                )
            self.history.learning_rate.append(step.learning_rate)
            self.history.gradient_norm.append(math.hypot(*norms))
            self.history.kl_weight.append(kl_weight)
            self.history.loss.append(loss)

    def _where(self, batch: Sequences) -> str:
        """What is not finite in the programs, found by running them once more."""
        (model, guide), num_particles = self._trained, self.elbo.num_particles
        if self.elbo.vectorize_particles and num_particles > 1:
            model, guide = (self.elbo._vectorized_num_particles(fn) for fn in self._trained)
            num_particles = 1
        return "; ".join(find_not_finite(model, guide, batch, num_particles))

    @contextmanager
    def _noting(self, run: str, again: AbstractContextManager[Any], batch: Sequences) -> Iterator[None]:
        """Inside, a program's error is given a note of what is not finite; `again` goes back to where it began."""
        try:
            yield
        except (ValueError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            with again:
                found = self._where(batch)
            if found:
                error.add_note(f"{run}: {found}")
            raise

    @contextmanager
    def _at(self, place: dict[str, Any], kl_weight: float) -> Iterator[None]:
        """Inside, it is as it was when a step began, but for the parameters."""
        now = self._here()
        self._go_to(place)
        if self.annealing is not None:
            self.annealing.weight = kl_weight
        try:
            yield
        finally:
            self._go_to(now)

    def evaluate(self) -> None:
        """Evaluate the held-out data, once after a step, and keep the parameters if they are the best so far."""
        history, data = self.history, self.validation
        if data is None or self.num_steps in (0, *history.evaluated[-1:]):
            return
        self.read()
        with self._evaluating():
            batches = data.batches(self.batches.batch_size or len(data))
            total = sum(self.elbo.loss(*_share(self.programs, batch), batch) for batch in batches)
        loss = total / data.num_observed
        if loss < (math.inf if history.best_validation is None else history.best_validation):
            self.best = self.parameters.state()
        history.evaluated.append(history.num_steps)
        history.validation.append(loss)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        # The same draws at each evaluation: it is the parameters that are compared.
        with mode(self.modules, training=False), torch.no_grad(), seeded(self.seed, self.device):
            yield

    @contextmanager
    def own_gradients(self) -> Iterator[None]:
        """Gradients that were there before would be added to the first step's; those of the last step are garbage."""
        try:
            for parameter in self._found.values():
                parameter.grad = None
            yield
        finally:
            for parameter in self._found.values():
                parameter.grad = None

    def progress(self) -> dict[str, str]:
        """What the progress bar shows."""
        read = {"loss": self.history.loss, "validation": self.history.validation}
        return {name: f"{values[-1]:.4f}" for name, values in read.items() if values}

    def _here(self) -> dict[str, Any]:
        return {"batches": self.batches.state(), "random": random_state(self.device)}

    def state(self) -> dict[str, Any] | None:
        """All that `load` needs; None if nothing is new, or if a step was broken off while it changed parameters."""
        if self._place is None or not self._place[0] == self.history.num_steps == self._first_step + self.adam.updates:
            return None
        return {
            "parameters": self.parameters.state(),
            "best": self.best,
            "optimizer": self.adam.state(),
            "history": asdict(self.history),
            **self._place[1],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` told."""
        self.parameters.load(state["parameters"])
        self.best = state["best"]
        self.adam.load(state["optimizer"])
        self.history = History(**state["history"])
        self._first_step = self.history.num_steps
        for name, unknown in (("gradient_norm", math.nan), ("kl_weight", 1.0)):
            values = getattr(self.history, name)
            values += [unknown] * (self.history.num_steps - len(values))
        self._go_to(state)

    def _go_to(self, place: dict[str, Any]) -> None:
        self.batches.load(place["batches"])
        set_random_state(self.device, place["random"])


def _share(programs: Sequence[Program], batch: Sequences) -> list[Program]:
    """The programs so that a minibatch stands for itself, not for the whole set that it is from."""
    return [poutine.scale(fn, len(batch) / batch.num_total) for fn in programs]


def _read_every(device: torch.device) -> int:
    # Elsewhere than on the CPU, to read is to wait for the device.
    return 1 if device.type == "cpu" else 20
