"""The demo writes its table, JSON and figure, and its numbers are those computed another way."""

import json
import math
from collections import Counter

import pytest
import torch

from examples import letters
from pyrohmm.data import Sequences


@pytest.fixture(scope="module")
def tiny():
    return letters.load(seed=0, limit=40)


def texts(data: Sequences) -> list[str]:
    return ["".join(letters.ALPHABET[x] for x in sequence.tolist()) for sequence in data.to_list()]


def test_quick_run_writes_everything(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    letters.main(["--quick", "--output", str(tmp_path), "--seed", "1"])
    result = json.loads((tmp_path / "letters.json").read_text())
    assert (tmp_path / "letters.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for name, bits in result["bits_per_letter"].items():
        assert f"{name:22}{bits:.3f}" in printed
        assert 0 < bits < 8
    train, held_out = letters.load(seed=1, limit=64)
    assert result["bits_per_letter"]["bigram"] == pytest.approx(letters.ngram_bits(train, held_out, 2))
    assert set(result["split"]["share_in_vowel_state"]) == set(letters.ALPHABET)


def test_unigram_is_the_cross_entropy(tiny):
    train, held_out = ("".join(texts(part)) for part in tiny)
    counts = Counter(train)
    kinds = len(counts)
    bits = {x: -math.log2((counts[x] + kinds / 27) / (len(train) + kinds)) for x in letters.ALPHABET}
    expected = sum(bits[x] for x in held_out) / len(held_out)
    assert letters.ngram_bits(*tiny, 1) == pytest.approx(expected, rel=1e-9)


def test_ngram_probabilities_sum_to_one(tiny):
    train, _ = tiny
    prefix = [0, 26, 4]
    for n in range(1, 5):
        # The last letter's probability: the difference of the totals with and without it.
        without = letters.ngram_bits(train, Sequences(torch.tensor([prefix])), n) * 3
        total = 0.0
        for letter in range(27):
            whole = letters.ngram_bits(train, Sequences(torch.tensor([[*prefix, letter]])), n) * 4
            total += 2 ** (without - whole)
        assert total == pytest.approx(1, rel=1e-9)


def test_uniform_model_costs_log2_of_the_symbols(tiny):
    _, held_out = tiny
    model = letters.plain_hmm(2, held_out, seed=0)
    torch.nn.init.zeros_(model.emission.logits)
    assert letters.bits_per_letter(model, held_out) == pytest.approx(math.log2(27), rel=1e-5)


def test_held_out_text_is_not_trained_on():
    train, held_out = letters.load(seed=0)
    assert 0.1 < held_out.num_observed / (held_out.num_observed + train.num_observed) < 0.4
    full = {text for text in texts(train) if len(text) == letters.SEQUENCE}
    assert not full & {text for text in texts(held_out) if len(text) == letters.SEQUENCE}
    seen: list[str] = sorted(letters.clean_topics().values())
    assert len(seen) == len(set(seen))


def test_split_criterion():
    shares = torch.tensor([[0.9, 0.1] if x in letters.VOWELS + " " else [0.2, 0.8] for x in letters.ALPHABET])
    split = letters.check_split(shares)
    assert split["found"]
    assert (split["vowel_state"], split["consonants_apart"], split["space_with_vowels"]) == (0, 21, True)
    shares[letters.ALPHABET.index("e")] = torch.tensor([0.4, 0.6])
    assert not letters.check_split(shares)["found"]


@pytest.mark.slow
def test_full_run_finds_the_vowels(tmp_path):
    pytest.importorskip("matplotlib")
    result = letters.run(tmp_path)
    bits = result["bits_per_letter"]
    assert result["split"]["found"]
    assert bits["bigram"] < bits["unigram"]
    assert bits["HMM, 2 states"] < bits["unigram"]
    assert bits["HMM, 8 states"] < bits["HMM, 2 states"]
    assert bits["neural HMM, 8 states"] < bits["trigram"]
