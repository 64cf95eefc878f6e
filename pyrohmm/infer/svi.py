"""Fitting by stochastic variational inference."""

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrohmm.data import Sequences
from pyrohmm.infer.checkpoint import load_checkpoint, save_checkpoint
from pyrohmm.infer.common import check_counts, check_modes, check_positive, check_sequences, mode, modules
from pyrohmm.infer.elbo import UnreadELBO
from pyrohmm.infer.history import History
from pyrohmm.infer.minibatches import Minibatches
from pyrohmm.infer.optimizer import ClippedAdam, Schedule, Step
from pyrohmm.infer.parameters import Parameters
from pyrohmm.models import HMM, BayesianHMM
from pyrohmm.models.isolation import own_parameters, random_state, seeded, set_random_state

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
    loss: ELBO | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> History:
    """Fit the parameters of a Pyro program, and of its guide, by stochastic variational inference with Adam.

    For a model whose only latent sites are the states of `pyrohmm.markov` loops this is maximum likelihood, by exact
    gradients. The loss is the negative ELBO for each observed time step, in nats; a minibatch gives an estimate of it.

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
        loss: an ELBO of Pyro, e.g. `TraceEnum_ELBO()`. Default: that of `Trace_ELBO`.
        seed: of the minibatches and of all draws. The same seed gives the same numbers.
        checkpoint: a file. If it exists, the fit goes on from there, to the same numbers as if it had not stopped.
            It is written every so often and at the end. `steps` may be raised to go on with a finished fit.
        checkpoint_every: steps between writings.
        progress: whether to show a progress bar.

    Returns:
        `History`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, nothing is observed or trainable, or
            the checkpoint does not belong to this fit.
        FloatingPointError: the loss or its gradient is not finite. The parameters are those before that step, also
            where the loss is looked at some steps later.

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
    if loss is not None and num_particles != 1:
        raise ValueError(f"num_particles: expected 1 since the given loss has its own, got {num_particles}")
    if not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in an existing folder, got {path}")
    program = model if callable(model) else getattr(model, "model", None)
    if not callable(program):
        raise TypeError(f"model: expected a Pyro program or an object with .model, got {type(model).__name__}")
    guide = getattr(model, "guide", _empty_guide) if guide is None else guide
    if not callable(guide):
        raise TypeError(f"guide: expected a Pyro program, got {type(guide).__name__}")

    roots = modules(program, guide)
    for root in roots:
        if isinstance(root, HMM) and not isinstance(root, BayesianHMM):
            check_modes(root)
    elbo = UnreadELBO(num_particles=num_particles) if loss is None else loss
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": "a function" if callable(schedule) else schedule,
        "clip_norm": clip_norm,
        "loss": type(elbo).__name__,
        "num_particles": num_particles,
        "num_sequences": len(data),
        "num_observed": data.num_observed,
    }
    optimizer = functools.partial(
        ClippedAdam, learning_rate=learning_rate, schedule=schedule, steps=steps, clip_norm=clip_norm
    )
    with own_parameters(*roots), mode(roots, training=True):
        fit = _Fit(program, guide, roots, data, validation, optimizer, elbo, batch_size, seed)
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
    return history


class _Fit:
    """A fit: what it changes and remembers, and how it makes a step.

    A step asks the device for no number. `read` does, for all steps since it was called last.
    """

    def __init__(
        self,
        program: Program,
        guide: Program,
        modules: Sequence[nn.Module],
        data: Sequences,
        validation: Sequences | None,
        optimizer: Callable[[Mapping[str, Tensor]], ClippedAdam],
        elbo: ELBO,
        batch_size: int | None,
        seed: int,
    ):
        self.programs = program, guide
        self.modules, self.validation, self.seed = modules, validation, seed
        self.elbo: Any = elbo  # its type does not tell of the methods that all its kinds have
        self.device = data.x.device
        self.read_every = _read_every(self.device)
        self.batches = Minibatches(data, batch_size, seed)
        self.history = History()
        self.best: dict[str, Any] | None = None
        self._unread: list[Step] = []
        self._first_step = 0
        # The last place between two steps, where a fit can be taken up again: it must not change with a broken step.
        self._place: tuple[int, dict[str, Any]] | None = None
        scale = len(data) / (data.num_total * data.num_observed)
        self._scaled = [poutine.scale(fn, scale) for fn in self.programs]
        self._found: dict[str, Tensor] = {}
        self._frozen = {p for module in modules for p in module.parameters() if not p.requires_grad}

        for module in modules:
            for parameter in module.parameters():
                # Of another one, Pyro's store would hold and train a copy.
                parameter.data = parameter.data.contiguous()
        # One run first, for what only a run makes or finds out: parameters of guides, the plates that a loss asks for.
        with self._evaluating(), poutine.trace(param_only=True) as capture:
            self.elbo.loss(*self.programs, data[:batch_size].trim())
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

    @property
    def num_steps(self) -> int:
        """Number of steps done, whether or not they were read."""
        return self.history.num_steps + len(self._unread)

    def step(self) -> None:
        """Make a step on the next minibatch."""
        batch = next(self.batches)
        with poutine.trace(param_only=True) as capture:
            loss = self.elbo.loss_and_grads(*self._scaled, batch)
        if late := self._trainable(capture.trace):
            self.adam.add(late)
        self._unread.append(self.adam.step(loss))
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
        steps, self._unread = self._unread, []
        numbers = iter(torch.cat([step.numbers for step in steps]).tolist())
        for step in steps:
            loss, *norms = islice(numbers, 1 + len(step.names))
            bad = [name for name, norm in zip(step.names, norms, strict=True) if not math.isfinite(norm)]
            if bad or not math.isfinite(loss):
                what = f"the gradient is not finite, in {bad}" if math.isfinite(loss) else f"the loss is {loss}"
                raise FloatingPointError(
                    f"step {self.history.num_steps + 1}: {what}. The parameters are those before this step. Try a "
                    "smaller learning_rate or clip_norm; scale the data; check that no sequence is impossible under "
                    "the model (a mask of states or edges, labels, values outside of the emission's support)"
                )
            self.history.learning_rate.append(step.learning_rate)
            self.history.loss.append(loss)

    def evaluate(self) -> None:
        """Evaluate the held-out data, once after a step, and keep the parameters if they are the best so far."""
        history, data = self.history, self.validation
        if data is None or self.num_steps in (0, *history.evaluated[-1:]):
            return
        self.read()
        with self._evaluating():
            batches = data.batches(self.batches.batch_size or len(data))
            # The loss of a minibatch is an estimate for the whole set that it is from.
            total = sum(len(batch) * self.elbo.loss(*self.programs, batch) for batch in batches)
        loss = total / (data.num_total * data.num_observed)
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
        self.batches.load(state["batches"])
        set_random_state(self.device, state["random"])


def _read_every(device: torch.device) -> int:
    # Elsewhere than on the CPU, to read is to wait for the device.
    return 1 if device.type == "cpu" else 20


def _empty_guide(data: Sequences) -> None:
    pass
