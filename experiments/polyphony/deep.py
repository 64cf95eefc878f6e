"""The deep Markov model of the music: settings, model, training and test.

h is a vector, x a chord (0/1 for each key), s the logistic function.

    dmm    p(h_t | h_{t-1}) = gated normal,  p(x_t | h_t) = Bernoulli(s(network(h_t)))
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Generator
from torch.optim.lr_scheduler import ExponentialLR

from pyrohmm import fit_svi
from pyrohmm.data import Polyphony, Sequences
from pyrohmm.infer import importance_log_prob
from pyrohmm.models import DeepMarkovModel
from pyrohmm.nn import Emitter, GatedTransition

Inference = Literal["mean-field", "left-right", "right-left", "both"]


@dataclass(frozen=True)
class DeepConfig:
    """What a run depends on, beside the seed.

    Attributes:
        model: "dmm".
        dataset: a name of `pyrohmm.data.load_polyphony`.
        states: size of the hidden vector h.
        epochs: passes over the training set, at most.
        batch_size: sequences in a minibatch.
        learning_rate: of Adam, at the start; it falls to a hundredth at the end of all epochs.
        emission: hidden units of the emission, in each layer.
        emission_layers: hidden layers of the emission.
        transition: hidden units of the transition.
        inference: what the guide sees, see `pyrohmm.models.DeepMarkovModel`.
        recurrent: units of its recurrent network, in each direction.
        flows: inverse autoregressive flows of the guide.
        dropout: of the hidden units of the emission.
        guide_dropout: of the features of the recurrent network.
        annealing: epochs in which the weight of the KL term grows from 0.2 to 1.
        every: epochs between evaluations.
        patience: stop after so many evaluations without a better validation loss.
        particles: draws from the guide for each test sequence, for its likelihood by importance sampling.
    """

    model: Literal["dmm"] = "dmm"
    dataset: str = "jsb"
    states: int = 64
    epochs: int = 900
    batch_size: int = 20
    learning_rate: float = 0.003
    emission: int = 150
    emission_layers: int = 2
    transition: int = 200
    inference: Inference = "right-left"
    recurrent: int = 200
    flows: int = 0
    dropout: float = 0.1
    guide_dropout: float = 0.1
    annealing: int = 200
    every: int = 10
    patience: int = 20
    particles: int = 500


class SimilarLengths(Sequences):
    """Sequences whose shuffled minibatches hold sequences of similar lengths: fewer steps are padding."""

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: Generator | None = None
    ) -> Iterator[Sequences]:
        """Minibatches; in random order, and of lengths that random numbers blur, if `shuffle`."""
        if not shuffle:
            return super().batches(batch_size)
        blurred = self.lengths * (1 + 0.3 * torch.rand(len(self), generator=generator))
        rows = blurred.argsort().split(batch_size)
        order = torch.randperm(len(rows), generator=generator).tolist()
        return (self[rows[i]].trim() for i in order)


def build_deep(train: Sequences, config: DeepConfig, seed: int) -> DeepMarkovModel:
    """The model at its start, which takes the mean chord from the training set."""
    generator = torch.Generator().manual_seed(seed)
    (num_keys,) = train.event_shape
    emission = Emitter(
        config.states,
        num_keys,
        (config.emission,) * config.emission_layers,
        dropout=config.dropout,
        generator=generator,
    )
    with torch.no_grad():
        emission.net[-1].bias.copy_(train.x[train.observed].mean(0).clamp(1e-3, 1 - 1e-3).logit())
    return DeepMarkovModel(
        emission,
        GatedTransition(config.states, config.transition, generator=generator),
        inference=config.inference,
        hidden=config.recurrent,
        dropout=config.guide_dropout,
        num_flows=config.flows,
        generator=generator,
    )


def bound_per_step(model: DeepMarkovModel, data: Sequences, particles: int = 10) -> float:
    """The negative bound for each time step, in nats, as a mean over draws. The model is to be in eval mode."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        total = sum(model.bound(batch, particles).sum().item() for batch in data.batches(20))
    return -total / data.num_observed


def run_deep(
    music: Polyphony, config: DeepConfig, seed: int, *, checkpoint: Path, progress: bool = True
) -> tuple[DeepMarkovModel, dict[str, Any]]:
    """Train with one seed, stopped by the validation set, and test.

    Args:
        music: the data.
        config: the settings.
        seed: of the start, the minibatches and the draws.
        checkpoint: a file from which a run that was broken off goes on; the curve is written beside it.
        progress: whether to show progress.

    Returns:
        The model, in eval mode, and its figures: nats for each time step.

    Raises:
        ValueError: the checkpoint is of a run with other settings.
    """
    model = build_deep(music.train, config, seed)
    train = SimilarLengths(music.train.x, music.train.lengths)
    epoch = math.ceil(len(train) / config.batch_size)
    decay = 0.01 ** (1 / (config.epochs * epoch))
    file = checkpoint.with_suffix(".json")
    former = json.loads(file.read_text()) if file.exists() else {"config": asdict(config), "seed": seed, "curve": []}
    if (checkpoint.exists() and not file.exists()) or (former["config"], former["seed"]) != (asdict(config), seed):
        raise ValueError(
            f"checkpoint: expected a new file, or one of a run with {config}, seed {seed}, got {checkpoint}"
        )
    curve: list[dict[str, float]] = former["curve"]
    file.write_text(json.dumps(former))
    ends = [*range(config.every, config.epochs, config.every), config.epochs]
    # Piece by piece, each going on from the checkpoint of the last one, for a look at the test set in between.
    for number, end in enumerate(ends):
        if number < len(curve) - 1:
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        history = fit_svi(
            model,
            train,
            steps=end * epoch,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            schedule=partial(ExponentialLR, gamma=decay),
            annealing=lambda step: min(1.0, 0.2 + 0.8 * step / (config.annealing * epoch)),
            loss=TraceMeanField_ELBO(),
            validation=music.valid,
            evaluate_every=config.every * epoch,
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=config.every * epoch,
            progress=False,
        )
        model.eval()
        if number == len(curve):
            before = curve[-1] if curve else {"seconds": 0.0, "cpu_seconds": 0.0}
            curve.append(
                {
                    "epoch": end,
                    "train": round(sum(history.loss[-epoch:]) / epoch, 4),
                    "validation": round(history.validation[-1], 4),
                    "seconds": round(before["seconds"] + time.perf_counter() - wall, 1),
                    "cpu_seconds": round(before["cpu_seconds"] + time.process_time() - cpu, 1),
                    # The parameters are now those of the best evaluation so far.
                    "test_of_best": round(bound_per_step(model, music.test, 1), 4),
                }
            )
            file.write_text(json.dumps(former))
            if progress:
                print(" ".join(f"{name} {value:g}" for name, value in curve[-1].items()), flush=True)
        losses = [row["validation"] for row in curve]
        if len(losses) - 1 - losses.index(min(losses)) >= config.patience:
            break
    best = min(curve, key=lambda row: row["validation"])
    estimate = importance_log_prob(model, music.test, num_particles=config.particles, seed=seed, progress=progress)
    return model, {
        "seed": seed,
        "test": bound_per_step(model, music.test),
        "test_importance": -estimate.log_prob.sum().item() / music.test.num_observed,
        "effective_sample_size": estimate.effective_sample_size.median().item(),
        "validation": bound_per_step(model, music.valid),
        "train": bound_per_step(model, music.train),
        "best_epoch": best["epoch"],
        "epochs": curve[-1]["epoch"],
        "seconds": curve[-1]["seconds"],
        "cpu_seconds": curve[-1]["cpu_seconds"],
        "curve": curve,
    }
