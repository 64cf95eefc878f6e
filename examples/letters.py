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
ORDER = 2  # letters before this one that the neural parts see
SEQUENCE = 64  # letters in a sequence
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#BBBBBB"]  # Okabe and Ito


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
    train, held_out = (part[:limit] for part in pieces)
    return (
        Sequences.from_list(train, inputs=map(previous_letters, train)),
        Sequences.from_list(held_out, inputs=map(previous_letters, held_out)),
    )


def previous_letters(x: Tensor) -> Tensor:
    """The last letters before each letter of (T,) as one-hot vectors, (T, ORDER * 27); zeros before the start."""
    lags = [functional.pad(x, (lag, 0), value=NUM_SYMBOLS)[: len(x)] for lag in range(1, ORDER + 1)]
    return functional.one_hot(torch.stack(lags, 1), NUM_SYMBOLS + 1)[..., :-1].flatten(1).float()


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
    """Networks that see the last letters: one for the next state's law given the state, one for the letter's law."""
    generator, memory, hidden = Generator().manual_seed(seed), ORDER * NUM_SYMBOLS, 64
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(num_states + memory, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, NUM_SYMBOLS)
        )
        # States that start out alike are slow to become different: give each a voice of its own in the network.
        torch.nn.init.normal_(net[0].weight[:, :num_states], std=0.4)
    return NeuralHMM(
        initial=Initial(num_states, generator=generator),
        # The letters enter as the data's inputs, so there is a transition matrix for each step.
        transition=NeuralTransition(num_states, context=memory, sticky=0.0, generator=generator),
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
    """Decoded states over a stretch of text, the posterior beneath, and how often each state follows each."""
    from matplotlib.figure import Figure  # only here: the rest of the example runs without it

    text = data[max(range(len(data)), key=lambda i: len(data.x[i].unique()))].trim()  # many kinds of letters
    num_steps, middle = text.num_steps, {"ha": "center", "va": "center"}
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    grid = figure.subplots(2, 2, width_ratios=[4, 1])
    for (stretch, matrix), (title, model) in zip(grid, models.items(), strict=True):
        posterior = model.posterior(text)
        bottom = torch.zeros(num_steps)
        for share, colour in zip(posterior.marginals[0].T, COLOURS, strict=False):
            stretch.bar(range(num_steps), share.tolist(), 1.0, bottom=bottom.tolist(), color=colour)
            bottom += share
        for step, (symbol, state) in enumerate(zip(text.x[0].tolist(), posterior.mode[0].tolist(), strict=True)):
            box = {"facecolor": COLOURS[state], "edgecolor": "none", "pad": 1.5}
            letter = ALPHABET[symbol].replace(" ", "_")  # a space cannot be seen
            stretch.text(step, 1.13, letter, family="monospace", fontsize=13, bbox=box, **middle)
            stretch.text(step, 1.3, str(state), fontsize=9, **middle)  # for those who cannot tell the colours
        stretch.set(xlim=(-0.5, num_steps - 0.5), ylim=(0, 1.38), xticks=[], yticks=[0, 0.5, 1], ylabel="posterior")
        stretch.set_title(f"{title}: the most probable path, and the posterior of each state beneath")
        stretch.spines[["top", "right", "bottom"]].set_visible(False)
        # The neural model has a matrix for each step. Shown is what the posterior does, over all of the data.
        moves = model.posterior(data).transition_marginals.sum((0, 1))
        percent = (100 * moves / moves.sum(1, keepdim=True).clamp(min=1e-9)).tolist()
        matrix.imshow(percent, cmap="Greys", vmin=0, vmax=100)
        states = range(model.num_states)
        for start in states:
            for end in states:
                value = percent[start][end]
                matrix.text(end, start, f"{value:.0f}", color="white" if value > 50 else "black", fontsize=9, **middle)
        matrix.set(xticks=states, yticks=states, xlabel="to state", ylabel="from state", title="moves, percent")
    figure.savefig(path)


def run(output: Path, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Train, print, and write letters.json and letters.png; `quick` is a look at a few sequences and steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    train, held_out = load(seed, limit=64 if quick else None)
    print(f"{train.num_observed} letters to train on, {held_out.num_observed} held out")
    steps = {"two": 3, "plain": 3, "neural": 3} if quick else {"two": 250, "plain": 300, "neural": 700}

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
    print(f"\nbits per held-out letter (the neural model sees the last {ORDER} letters, as the trigram does)")
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
    # The steps are many and small: on a busy machine, threads would wait for each other most of the time.
    torch.set_num_threads(1)
    main()
