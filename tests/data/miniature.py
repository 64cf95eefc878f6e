"""Small sets in the formats of the public ones, for machines without these: each function writes the files of a set
into a data folder and returns what the loader's module should have as `_FILES`."""

import hashlib
from pathlib import Path

import numpy as np
import scipy.io

from pyrohmm.data.ud_english_ewt import TAGS, content


def write_polyphony(path: Path, rolls: dict[str, list[np.ndarray]]) -> str:
    """Write piano rolls as a file of one set; its checksum."""
    cells = {}
    for key, arrays in rolls.items():
        cells[key] = np.empty((1, len(arrays)), dtype=object)
        cells[key][0] = [*arrays] if len(arrays) > 1 else arrays
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, cells)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_rolls(lengths: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Keys that sound at random, a tenth of them."""
    rng = np.random.default_rng(seed)
    return {key: [(rng.random((n, 88)) < 0.1).astype(np.uint8) for n in some] for key, some in lengths.items()}


def polyphony(folder: Path) -> dict[str, tuple[str, str]]:
    """A set in the place of "jsb"."""
    rolls = random_rolls({"traindata": (30, 40, 25, 35), "validdata": (30, 26), "testdata": (28, 33)})
    return {"jsb": ("JSB_Chorales.mat", write_polyphony(folder / "polyphony" / "JSB_Chorales.mat", rolls))}


def write_conllu(path: Path, sentences: list[list[tuple[str, str]]]) -> str:
    """Write words and tags in CoNLL-U, with what a loader has to leave out; their checksum."""
    lines = []
    for number, sentence in enumerate(sentences):
        lines += [f"# sent_id = {number}", "# text = " + " ".join(word for word, _ in sentence)]
        for place, (word, tag) in enumerate(sentence, 1):
            if place < len(sentence) and place % 4 == 1:
                both = word + sentence[place][0]
                lines.append(f"{place}-{place + 1}\t{both}" + "\t_" * 8)
            lines.append(f"{place}\t{word}\t{word.lower()}\t{tag}\t{tag[:2]}\t_\t0\troot\t_\t_")
        lines += [f"{len(sentence)}.1\tis\tbe\tAUX" + "\t_" * 6, ""]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return hashlib.sha256(content(path)).hexdigest()


def ud_english_ewt(folder: Path) -> dict[str, tuple[str, str]]:
    """Tags at random, with two frequent words and many rare ones each."""
    rng = np.random.default_rng(0)

    def sentence() -> list[tuple[str, str]]:
        tags = rng.integers(len(TAGS), size=rng.integers(1, 15))
        words = (f"{TAGS[tag].lower()}{'abcd'[rng.integers(4)] * rng.integers(1, 9)}ing" for tag in tags)
        frequent = (f"{TAGS[tag].lower()}{rng.integers(2)}" for tag in tags)
        words = [common if rng.random() < 0.8 else rare for rare, common in zip(words, frequent, strict=True)]
        return [(word, TAGS[tag]) for word, tag in zip(words, tags, strict=True)]

    files = {}
    for part, (file, size) in {"train": ("train", 120), "valid": ("dev", 20), "test": ("test", 30)}.items():
        name = f"en_ewt-ud-{file}.conllu"
        files[part] = name, write_conllu(folder / "ud_english_ewt" / name, [sentence() for _ in range(size)])
    return files
