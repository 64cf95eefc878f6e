"""The dishonest casino: which rolls were of the loaded die? Run: python -m examples.casino

A casino rolls a fair die, now and then changes to a loaded one that shows a six half of the time, and back. All that
is seen are the rolls. A hidden Markov model that is told nothing but the rolls finds both dice, how often they are
changed, and when. The casino is that of Durbin, Eddy, Krogh and Mitchison (1998), "Biological sequence analysis".
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pyrohmm import fit_em
from pyrohmm.checks import plot_decoding, plot_emissions, plot_state_graph
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import CategoricalEmission, Initial, Transition

NAMES = ["fair", "loaded"]
TRANSITION = torch.tensor([[0.95, 0.05], [0.1, 0.9]])  # [from, to]
FACES = torch.tensor([[1 / 6] * 6, [0.1] * 5 + [0.5]])
NUM_ROLLS = 300
TOLERANCE = 0.08  # of what is found, in probability


def casino() -> HMM:
    """The casino itself, as a model."""
    model = HMM(CategoricalEmission(2, 6, probs=FACES), Initial(2), Transition(2))
    with torch.no_grad():
        model.transition.logits.copy_(TRANSITION.log())
        model.initial.logits.copy_(torch.tensor([2 / 3, 1 / 3]).log())  # the stationary law
    return model


@torch.no_grad()
def parameters(model: HMM) -> tuple[Tensor, Tensor]:
    """Transition probabilities (2, 2) and those of the faces (2, 6)."""
    return model.transition.log_probs().exp(), model.emission.logits.softmax(-1)


def fit(rolls: Sequences, seed: int, restarts: int) -> HMM:
    """A model of the rolls alone."""
    generator = Generator().manual_seed(seed)
    model = HMM(
        CategoricalEmission(2, 6, noise=0.5, generator=generator),
        Initial(2, generator=generator),
        Transition(2, sticky=2.0, generator=generator),
    )
    fit_em(model, rolls, steps=100, restarts=restarts, seed=seed, progress=False)
    # States have no names of their own: the loaded die is the one with more sixes.
    model.relabel(model.emission.logits.softmax(-1)[:, -1].argsort())
    return model


@torch.no_grad()
def accuracy(model: HMM, rolls: Sequences) -> float:
    """Share of the rolls of which the most probable path has the right die."""
    right = model.posterior(rolls).viterbi().states == rolls.labels
    return float(right[rolls.valid].double().mean())


def plot(model: HMM, rolls: Sequences, shown: int, path: Path) -> None:
    """When the loaded die was used in one sequence, and below the model that was found."""
    from matplotlib.figure import Figure  # only here: the rest of the example runs without it

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    left, right = below.subplots(1, 2, width_ratios=[1, 1.2])
    one = rolls[shown]
    plot_decoding(
        model.posterior(one), one.labels, state_names=NAMES, time_label="roll of the die", ax=above.subplots()
    )
    plot_state_graph(model, state_names=NAMES, ax=left)
    plot_emissions(model, rolls, state_names=NAMES, value_names=list("123456"), label="face", ax=right)
    figure.savefig(path)


def run(output: Path, seed: int = 0, num_sequences: int = 20, restarts: int = 3) -> dict[str, Any]:
    """Simulate, fit, decode, print, and write casino.png."""
    begin, truth = time.perf_counter(), casino()
    rolls = truth.simulate(num_sequences, NUM_ROLLS, seed=seed)
    model = fit(rolls, seed, restarts)
    (transition, faces), (true_transition, true_faces) = parameters(model), parameters(truth)
    error = max(float((transition - true_transition).abs().max()), float((faces - true_faces).abs().max()))

    print(f"{rolls.num_observed} rolls in {num_sequences} sequences; found (and true)")
    for state, name in enumerate(NAMES):
        change = f"changed {transition[state, 1 - state]:.3f} ({true_transition[state, 1 - state]:.3f})"
        shares = "  ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(faces[state], true_faces[state], strict=True))
        print(f"   {name:7}{change}   faces {shares}")
    result = {
        "error": error,
        "found": error < TOLERANCE,
        "accuracy": accuracy(model, rolls),
        "accuracy_of_the_truth": accuracy(truth, rolls),
    }
    print(
        f"right die at {result['accuracy']:.1%} of the rolls, "
        f"{result['accuracy_of_the_truth']:.1%} if the casino were known"
    )
    output.mkdir(parents=True, exist_ok=True)
    # One in which the die is changed often.
    assert rolls.labels is not None
    shown = int(rolls.labels.diff().abs().sum(1).argmax())
    plot(model, rolls, shown, output / "casino.png")
    print(f"{output / 'casino.png'}: {time.perf_counter() - begin:.0f} s")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_results"), help="folder of the PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the rolls and the starts")
    options = parser.parse_args(arguments)
    if not run(options.output, options.seed)["found"]:
        raise SystemExit("the model that was found is not the casino")


if __name__ == "__main__":
    main()
