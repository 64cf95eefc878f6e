"""English letters: find vowels and consonants, then model the text. Run: python -m examples.letters

The text is Python's own documentation, which every CPython carries (`pydoc_data.topics`). A hidden Markov model with
two states, told nothing about language, finds the vowels and the consonants. One with more states and neural parts
is then compared with n-grams and with a plain hidden Markov model, in bits per letter of text it was not trained on.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pyrohmm import fit_svi
from pyrohmm.data import Sequences
from pyrohmm.models import HMM, NeuralHMM
from pyrohmm.nn import AutoregressiveEmission, CategoricalEmission, Initial, NeuralTransition, Transition

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
NUM_SYMBOLS = len(ALPHABET)
NUM_STATES = 8  # of the larger models
ORDER = 2  # letters before this one that the neural emission sees
SEQUENCE = 64  # letters in a sequence
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#BBBBBB"]  # Okabe and Ito


# The data


def clean_topics() -> dict[str, str]:
    """The text of each topic, in 27 symbols.

    Topics quote each other at length. A paragraph is kept only where it first occurs, or held-out text would also
    be among the training text.
    """
    seen: set[str] = set()
    texts = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            letters = " ".join(re.findall("[a-z]+", paragraph.lower()))
            if letters and letters not in seen:
                seen.add(letters)
                paragraphs.append(letters)
        if paragraphs:
            texts[name] = " ".join(paragraphs)
    return texts


def load(seed: int, limit: int | None = None) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences; whole topics, about 15% of the letters, are held out."""
    texts = clean_topics()
    names = sorted(texts)
    random.Random(seed).shuffle(names)
    wanted = 0.15 * sum(map(len, texts.values()))
    pieces: tuple[list[Tensor], list[Tensor]] = [], []
    num_held_out = 0
    for name in names:
        part = pieces[num_held_out < wanted]
        num_held_out += len(texts[name]) if num_held_out < wanted else 0
        part.extend(torch.tensor([ALPHABET.index(letter) for letter in texts[name]]).split(SEQUENCE))
    train, held_out = pieces
    return Sequences.from_list(train[:limit]), Sequences.from_list(held_out[:limit])


# The rivals


def contexts(data: Sequences, order: int) -> Tensor:
    """The last `order` letters before each letter, as digits of a number, the newest last; 27: before the start."""
    padded = functional.pad(data.x, (order, 0), value=NUM_SYMBOLS)
    number = torch.zeros_like(data.x)
    for lag in range(1, order + 1):
        number += padded[:, order - lag : order - lag + data.num_steps] * (NUM_SYMBOLS + 1) ** (lag - 1)
    return number[data.valid]


def ngram_bits(train: Sequences, held_out: Sequences, n: int) -> float:
    """Bits per held-out letter of an n-gram, each order mixed with the shorter ones (Witten and Bell 1991)."""
    probs = torch.full((1, NUM_SYMBOLS), 1 / NUM_SYMBOLS, dtype=torch.float64)
    for order in range(n):
        num_contexts = (NUM_SYMBOLS + 1) ** order
        cells = contexts(train, order) * NUM_SYMBOLS + train.x[train.valid]
        counts = torch.bincount(cells, minlength=num_contexts * NUM_SYMBOLS).reshape(num_contexts, NUM_SYMBOLS)
        kinds = (counts > 0).sum(1, keepdim=True)
        shorter = probs.repeat(num_contexts // len(probs), 1)
        mixed = (counts + kinds * shorter) / (counts.sum(1, keepdim=True) + kinds).clamp(min=1)
        probs = torch.where(kinds > 0, mixed, shorter)
    return -probs[contexts(held_out, n - 1), held_out.x[held_out.valid]].log2().mean().item()


# The models


def plain_hmm(num_states: int, train: Sequences, seed: int) -> HMM:
    """A classical model: tables of logits. Emissions start near the letters' frequencies."""
    generator = Generator().manual_seed(seed)
    frequencies = torch.bincount(train.x[train.valid], minlength=NUM_SYMBOLS) + 1.0
    return HMM(
        emission=CategoricalEmission(num_states, NUM_SYMBOLS, probs=frequencies, generator=generator),
        initial=Initial(num_states, generator=generator),
        # Kinds of letters alternate: the chain starts out as one that likes to leave its state.
        transition=Transition(num_states, sticky=-1.0, generator=generator),
    )


def neural_hmm(num_states: int, seed: int) -> NeuralHMM:
    """The network of the emission sees the state and the last letters; transitions are scores of embeddings."""
    generator = Generator().manual_seed(seed)
    hidden = 128
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(num_states + ORDER * NUM_SYMBOLS, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, NUM_SYMBOLS),
        )
        # States that start out alike are slow to become different: give each a voice of its own in the network.
        torch.nn.init.normal_(net[0].weight[:, :num_states], std=0.4)
    return NeuralHMM(
        initial=Initial(num_states, generator=generator),
        transition=NeuralTransition(num_states, sticky=-1.0, generator=generator),
        emission=AutoregressiveEmission(num_states, net, family="categorical", dim=NUM_SYMBOLS, order=ORDER),
    )


@torch.no_grad()
def bits_per_letter(model: HMM, data: Sequences) -> float:
    """Minus the log-likelihood, base 2, for each letter."""
    total = sum(model.log_prob(batch).double().sum().item() for batch in data.batches(256))
    return -total / data.num_observed / math.log(2)


@torch.no_grad()
def states_by_letter(model: HMM, data: Sequences) -> Tensor:
    """Share of each letter's occurrences that the posterior puts in each state, (27, K)."""
    shares = torch.zeros(NUM_SYMBOLS, model.num_states)
    for batch in data.batches(256):
        shares.index_add_(0, batch.x[batch.valid], model.posterior(batch).marginals[batch.valid])
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-9)


def check_split(shares: Tensor) -> dict[str, Any]:
    """Where the letters went. Found: all five vowels in one state, at least 17 of the 21 consonants in the other."""
    state = dict(zip(ALPHABET, shares.argmax(1).tolist(), strict=True))
    vowel_state = int(sum(state[letter] for letter in VOWELS) > len(VOWELS) / 2)
    num_vowels = sum(state[letter] == vowel_state for letter in VOWELS)
    num_consonants = sum(state[letter] != vowel_state for letter in CONSONANTS)
    return {
        "vowel_state": vowel_state,
        "vowels_together": num_vowels,
        "consonants_apart": num_consonants,
        "space_with_vowels": state[" "] == vowel_state,
        "found": num_vowels == len(VOWELS) and num_consonants >= 17,
        "share_in_vowel_state": dict(zip(ALPHABET, shares[:, vowel_state].tolist(), strict=True)),
    }


# What is shown


def print_split(split: dict[str, Any]) -> None:
    """The letters by state, the surest first."""
    share = split["share_in_vowel_state"]
    for title, sign in (("vowel state", 1), ("consonant state", -1)):
        letters = sorted((x for x in share if (share[x] > 0.5) == (sign > 0)), key=lambda x: -sign * share[x])
        print(f"\n{title} (percent of the letter's occurrences)")
        cells = [f"{x.replace(' ', '_')} {100 * (share[x] if sign > 0 else 1 - share[x]):3.0f}" for x in letters]
        for row in range(0, len(cells), 9):
            print("   " + "   ".join(cells[row : row + 9]))
    print(
        f"\n{split['vowels_together']} of 5 vowels in one state, {split['consonants_apart']} of 21 consonants in the "
        f"other: {'found' if split['found'] else 'NOT found'}"
    )


@torch.no_grad()
def plot(models: dict[str, HMM], data: Sequences, path: Path) -> None:
    """Decoded states over a stretch of text, the posterior beneath, and the transition matrices."""
    from matplotlib.figure import Figure  # only here: the rest of the example runs without it

    text = data[int(data.lengths.argmax())].trim()
    letters = [ALPHABET[x] for x in text.x[0].tolist()]
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    grid = figure.subplots(2, 2, width_ratios=[4, 1], squeeze=False)
    for (stretch, matrix), (title, model) in zip(grid, models.items(), strict=True):
        posterior = model.posterior(text)
        states, marginals = posterior.viterbi().states[0].tolist(), posterior.marginals[0]
        steps, bottom = range(len(letters)), torch.zeros(len(letters))
        for state in range(model.num_states):
            stretch.bar(steps, marginals[:, state], 1.0, bottom=bottom, color=COLOURS[state])
            bottom = bottom + marginals[:, state]
        for step, (letter, state) in enumerate(zip(letters, states, strict=True)):
            stretch.text(
                step,
                1.16,
                letter.replace(" ", "_"),  # a space cannot be seen
                ha="center",
                va="center",
                family="monospace",
                fontsize=13,
                bbox={"facecolor": COLOURS[state], "edgecolor": "none", "pad": 1.5},
            )
            stretch.text(step, 1.34, str(state), ha="center", va="center", fontsize=7, color="0.35")
        stretch.set(xlim=(-0.5, len(letters) - 0.5), ylim=(0, 1.42), xticks=[], yticks=[0, 0.5, 1])
        stretch.set_ylabel("posterior")
        stretch.set_title(
            f"{title}: most probable path (letters, numbers), posterior of each state (bars)", fontsize=11
        )
        stretch.spines[["top", "right", "bottom"]].set_visible(False)
        probs = model.transition.log_probs().exp()
        matrix.imshow(probs, cmap="Greys", vmin=0, vmax=1)
        for row in range(model.num_states):
            for column in range(model.num_states):
                p = probs[row, column].item()
                size = 12 if model.num_states == 2 else 6
                matrix.text(
                    column,
                    row,
                    f"{p:.2f}"[-3:] if p < 0.995 else "1",
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if p > 0.5 else "black",
                )
        matrix.set(xticks=range(model.num_states), yticks=range(model.num_states), xlabel="to", ylabel="from")
        matrix.set_title("transitions", fontsize=11)
    figure.savefig(path)


# The job


def run(output: Path, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Train, print, and write letters.json and letters.png; `quick` is a look at a few sequences and steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    train, held_out = load(seed, limit=64 if quick else None)
    print(f"{train.num_observed} letters to train on, {held_out.num_observed} held out")
    steps = {"two": 3, "plain": 3, "neural": 3} if quick else {"two": 250, "plain": 300, "neural": 600}

    two = plain_hmm(2, train, seed)
    fit_svi(two, train, steps=steps["two"], batch_size=128, learning_rate=0.1, schedule="cosine", seed=seed)
    split = check_split(states_by_letter(two, train))
    print_split(split)

    plain = plain_hmm(NUM_STATES, train, seed)
    fit_svi(plain, train, steps=steps["plain"], batch_size=128, learning_rate=0.1, schedule="cosine", seed=seed)
    neural = neural_hmm(NUM_STATES, seed)
    fit_svi(neural, train, steps=steps["neural"], batch_size=64, learning_rate=0.03, schedule="cosine", seed=seed)

    models = {"HMM, 2 states": two, f"HMM, {NUM_STATES} states": plain, f"neural HMM, {NUM_STATES} states": neural}
    bits = {
        name: ngram_bits(train, held_out, n) for n, name in enumerate(("unigram", "bigram", "trigram", "4-gram"), 1)
    }
    bits |= {name: bits_per_letter(model, held_out) for name, model in models.items()}
    print(f"\nbits per held-out letter (the neural model sees {ORDER} letters back, as the trigram does)")
    for name, value in bits.items():
        print(f"   {name:22}{value:.3f}")

    output.mkdir(parents=True, exist_ok=True)
    shown = {name: model for name, model in models.items() if model is not plain}
    plot(shown, held_out, output / "letters.png")
    result = {
        "seed": seed,
        "quick": quick,
        "python": sys.version.split()[0],
        "train_letters": train.num_observed,
        "held_out_letters": held_out.num_observed,
        "steps": steps,
        "bits_per_letter": bits,
        "num_parameters": {name: model.num_parameters for name, model in models.items()},
        "split": split,
        "seconds": {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu},
    }
    (output / "letters.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{output / 'letters.png'}, {output / 'letters.json'}: {result['seconds']['wall']:.0f} s")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_results"), help="folder of the PNG and the JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the starts and the minibatches")
    parser.add_argument("--quick", action="store_true", help="a few steps on a little text: the figures mean nothing")
    options = parser.parse_args(arguments)
    result = run(options.output, options.seed, options.quick)
    if not options.quick and not result["split"]["found"]:
        raise SystemExit("the two states are not vowels and consonants")


if __name__ == "__main__":
    main()
