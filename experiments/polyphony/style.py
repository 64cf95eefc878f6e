"""The chorales' hidden Markov model with a style vector for each chorale: settings, model, training and test.

z is the state, u a vector for the whole sequence, x a chord (0/1 for each key), s the logistic function.

    style    p(u) = N(0, I),  p(x_t | z_t, u) = Bernoulli(s(b[z_t] + W u))

and u is added to the logits of the first state and of the transitions, too, with weights for each state and each edge.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pyrohmm import fit_svi
from pyrohmm.data import Polyphony, Sequences
from pyrohmm.infer import importance_log_prob
from pyrohmm.models import HMM, MixedEffectsHMM
from pyrohmm.nn import NeuralEmission, PooledEncoder, RegressionInitial, RegressionTransition, StepEncoder


@dataclass(frozen=True)
class StyleConfig:
    """What a run depends on, beside the seed and the "hmm" of as many states from which it starts.

    Attributes:
        model: "style".
        dataset: a name of `pyrohmm.data.load_polyphony`.
        states: K.
        style: size of the vector u.
        epochs: passes over the training set, at most.
        batch_size: sequences in a minibatch.
        learning_rate: of Adam, at the start; it falls to a hundredth at the end of all epochs.
        spread: standard deviation of the weights W at the start.
        encoder: units of the guide, which reads each chord by itself and takes the mean.
        patience: stop after so many epochs without a better validation loss.
        particles: draws from the guide for each test sequence, for its likelihood by importance sampling.
    """

    model: Literal["style"] = "style"
    dataset: str = "jsb"
    states: int = 16
    style: int = 4
    epochs: int = 80
    batch_size: int = 20
    learning_rate: float = 0.03
    spread: float = 0.1
    encoder: int = 64
    patience: int = 20
    particles: int = 500


def build_style(plain: HMM, config: StyleConfig, seed: int) -> MixedEffectsHMM:
    """The model at its start: the plain "hmm", but for small weights W."""
    generator = torch.Generator().manual_seed(seed)
    size, num_states = config.style, config.states
    (num_keys,) = plain.emission.event_shape
    net = nn.Linear(num_states + size, num_keys, bias=False)
    initial = RegressionInitial(num_states, size, generator=generator)
    transition = RegressionTransition(num_states, size, generator=generator)
    with torch.no_grad():
        net.weight[:, :num_states] = plain.emission(torch.arange(num_states)).base_dist.logits.mT
        net.weight[:, num_states:].normal_(0, config.spread, generator=generator)
        initial.logits.copy_(plain.initial.logits)
        transition.logits.copy_(plain.transition.logits)
    return MixedEffectsHMM(
        NeuralEmission(num_states, nn.Sequential(net), "bernoulli", context=size),
        initial,
        transition,
        encoder=PooledEncoder(size, StepEncoder(num_keys, config.encoder, generator=generator), generator=generator),
    )


def bound_per_step(model: MixedEffectsHMM, data: Sequences, particles: int = 10) -> float:
    """The negative bound for each time step, in nats, as a mean over draws. The model is to be in eval mode."""
    with torch.no_grad():
        total = sum(model.log_prob(data, num_particles=1, seed=seed).sum().item() for seed in range(particles))
    return -total / particles / data.num_observed


def run_style(
    music: Polyphony, config: StyleConfig, seed: int, plain: HMM, *, progress: bool = True
) -> tuple[MixedEffectsHMM, dict[str, Any]]:
    """Train with one seed, stopped by the validation set, and test.

    Args:
        music: the data.
        config: the settings.
        seed: of the start, the minibatches and the draws.
        plain: the model from which it starts, trained.
        progress: whether to show progress.

    Returns:
        The model, in eval mode, and its figures: nats for each time step.
    """
    model = build_style(plain, config, seed)
    epoch = math.ceil(len(music.train) / config.batch_size)
    begin, cpu = time.perf_counter(), time.process_time()
    history = fit_svi(
        model,
        music.train,
        steps=config.epochs * epoch,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="exponential",
        validation=music.valid,
        evaluate_every=epoch,
        patience=config.patience,
        seed=seed,
        progress=progress,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    model.eval()
    estimate = importance_log_prob(model, music.test, num_particles=config.particles, seed=seed, progress=progress)
    return model, {
        "seed": seed,
        "test": bound_per_step(model, music.test),
        "test_importance": -estimate.log_prob.sum().item() / music.test.num_observed,
        "effective_sample_size": estimate.effective_sample_size.median().item(),
        "validation": bound_per_step(model, music.valid),
        "train": bound_per_step(model, music.train),
        "best_epoch": (history.best_step or 0) / epoch,
        "epochs": history.num_steps / epoch,
        "stop_reason": history.stop_reason,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "validation_by_epoch": [round(value, 4) for value in history.validation],
    }
