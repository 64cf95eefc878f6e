"""Words and their parts of speech: the English Web Treebank in Universal Dependencies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pyrohmm.data.cache import fetch
from pyrohmm.data.sequences import Sequences

_URL = "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/r2.17/"

# part -> (file, SHA-256 of its words and tags, see `content`)
_FILES = {
    "train": ("en_ewt-ud-train.conllu", "f66337dc7c394a1f497ddce9714c77f2bb296eb3721e01ed313d5a40eb5db6c9"),
    "valid": ("en_ewt-ud-dev.conllu", "ac7b79f3411079d8dca268d824ce4b36e25c9ba839ccd64067024d2ac18fba8d"),
    "test": ("en_ewt-ud-test.conllu", "ead3f5bc8fe6026fa56cebf36b682bf79b165ff19762ad2bed0120039f6033ad"),
}

# fmt: off
TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ",
    "SYM", "VERB", "X",
)
# fmt: on

UNKNOWN = "<unk>"
_LONGEST_ENDING = 3
# Rare words of the training part that a class must have; of fewer, little can be said.
_LEAST_IN_CLASS = 10

Words = list[str]
Tags = list[str]


class TaggedWords(NamedTuple):
    """Sentences as symbols, with their parts of speech as labels, and what symbols and labels stand for.

    Attributes:
        train, valid, test: `Sequences` with x (N, T) int64, places in `words`, and labels (N, T), places in `tags`.
        words: the vocabulary: classes of rare words in angle brackets, then words, the frequent ones first.
        tags: names of the labels.
    """

    train: Sequences
    valid: Sequences
    test: Sequences
    words: tuple[str, ...]
    tags: tuple[str, ...]

    def encode(self, sentences: Iterable[Sequence[str]]) -> Sequences:
        """Sentences of one's own as symbols.

        Args:
            sentences: N lists of words, divided as the treebank does: "do", "n't", punctuation apart.

        Returns:
            Sequences (N, T), int64, without labels.

        Raises:
            ValueError: no sentences, or an empty one.

        Example:
            >>> part = Sequences.from_list([[0]])
            >>> tagged = TaggedWords(part, part, part, ("<unk>", "<lower-ing>", "the"), TAGS)
            >>> tagged.encode([["the", "dozing", "cat"]]).x
            tensor([[2, 1, 0]])
        """
        places = {word: i for i, word in enumerate(self.words)}
        return Sequences.from_list([[_symbol(word, places) for word in sentence] for sentence in sentences])


def load_ud_english_ewt(
    *, min_count: int = 2, unknown: Literal["classes", "one"] = "classes", verify: bool = True
) -> TaggedWords:
    """English web text with parts of speech: x[n, t] is a word of sentence n, labels[n, t] one of 17 tags.

    ======  =========  =======
    part    sentences  words
    ======  =========  =======
    train   12544      204577
    valid   2001       25147
    test    2077       25094
    ======  =========  =======

    Words are those of the syntax ("do", "n't"), as written. A word that occurs in `train` fewer than `min_count` times
    is a rare one: its symbol is that of the first of its classes that holds at least 10 rare words of `train`.
    For "dozing" these are ``<lower-ing>``, ``<lower-ng>``, ``<lower-g>``, ``<lower>`` and ``<unk>``: how it is written
    ("lower", "title", "upper" or "mixed") and how it ends. A word with digits is ``<number>``, or ``<number-mixed>``
    with letters, one without either ``<symbols>``.

    The files come from PYROHMM_DATA (``ud_english_ewt/en_ewt-ud-train.conllu`` and so on in the folder that this
    environment variable names), the cache or a download: see :func:`pyrohmm.data.cache.fetch`. Checksums are those of
    words and tags alone, so that a file passes whatever its other columns hold. They were taken from files that had
    been put together from the repository's documents, of the counts above. Whether a release has just these words and
    tags was not checked, nor was the download (of release 2.17): tags are corrected from one release to the next.
    With another release, pass ``verify=False``; figures then differ a little.

    Args:
        min_count: how often a word must occur in `train` to have a symbol of its own.
        unknown: "classes" for rare words as above, "one" for ``<unk>`` alone.
        verify: whether words and tags must be those of the checksums.

    Returns:
        `TaggedWords`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, a file is not in CoNLL-U, or has other
            words or tags.
        ConnectionError: a file is not there and cannot be downloaded.

    Reference:
        N. Silveira et al., "A gold standard dependency corpus for English", LREC 2014. Repository
        UniversalDependencies/UD_English-EWT (annotation CC BY-SA 4.0).

    Example:
        >>> tagged = load_ud_english_ewt()  # doctest: +SKIP
        >>> tagged.valid  # doctest: +SKIP
        Sequences(2001 sequences of 1 to 75 steps, event_shape=(), int64, labels)
        >>> load_ud_english_ewt(unknown="none")
        Traceback (most recent call last):
        ...
        ValueError: unknown must be 'classes' or 'one', got 'none'
    """
    if not isinstance(min_count, int) or isinstance(min_count, bool):
        raise TypeError(f"min_count must be an int, got {type(min_count)}")
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    if unknown not in ("classes", "one"):
        raise ValueError(f"unknown must be 'classes' or 'one', got {unknown!r}")
    parts = {
        name: list(read_conllu(_path(file, sha256 if verify else None))) for name, (file, sha256) in _FILES.items()
    }
    words = _vocabulary([sentence for sentence, _ in parts["train"]], min_count, unknown == "classes")
    places = {word: i for i, word in enumerate(words)}
    labels = {tag: i for i, tag in enumerate(TAGS)}
    coded = {
        name: Sequences.from_list(
            [[_symbol(word, places) for word in sentence] for sentence, _ in part],
            labels=[[labels[tag] for tag in tags] for _, tags in part],
        )
        for name, part in parts.items()
    }
    return TaggedWords(**coded, words=words, tags=TAGS)


def read_conllu(path: Path) -> Iterator[tuple[Words, Tags]]:
    """Words (column FORM) and tags (UPOS) of each sentence; multiword tokens and empty nodes are left out.

    Raises:
        ValueError: a line has not the format, or another tag than the 17.
    """
    words, tags = [], []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if not line and words:
                yield words, tags
                words, tags = [], []
            if not line or line.startswith("#"):
                continue
            columns = line.split("\t")
            if len(columns) != 10 or not columns[0][0].isdigit():
                raise ValueError(f"{path}, line {number}: expected 10 columns of CoNLL-U, got {line!r}")
            place, word, _, tag, *_ = columns
            if not place.isdigit():  # 3-4, a multiword token, or 3.1, an empty node
                continue
            if tag not in TAGS:
                raise ValueError(f"{path}, line {number}: expected one of {', '.join(TAGS)}, got {tag!r}")
            words.append(word)
            tags.append(tag)
    if words:
        yield words, tags


def content(path: Path) -> bytes:
    """What a checksum is of: a line for each word, with its tag after a tab, and an empty line after each sentence."""
    sentences = ("".join(f"{word}\t{tag}\n" for word, tag in zip(*pair, strict=True)) for pair in read_conllu(path))
    return "".join(f"{sentence}\n" for sentence in sentences).encode()


def _path(file: str, sha256: str | None) -> Path:
    try:
        return fetch(file, _URL + file, sha256, "ud_english_ewt", content)
    except ValueError as error:
        error.add_note("Words and tags of another release are taken by load_ud_english_ewt(verify=False).")
        raise


def _vocabulary(sentences: list[Words], min_count: int, with_classes: bool) -> tuple[str, ...]:
    counts = Counter(word for words in sentences for word in words)
    frequent = [word for word, count in counts.most_common() if count >= min_count]
    members = Counter()
    for word, count in counts.items():
        if with_classes and count < min_count:
            members.update(dict.fromkeys(_classes(word), count))
    classes = [name for name, count in sorted(members.items()) if count >= _LEAST_IN_CLASS and name != UNKNOWN]
    # A word that is written like a class is its only member.
    return tuple(dict.fromkeys([UNKNOWN, *classes, *frequent]))


def _symbol(word: str, places: Mapping[str, int]) -> int:
    return places[word] if word in places else next(places[name] for name in _classes(word) if name in places)


def _classes(word: str) -> list[str]:
    """The classes of a word, from the narrowest."""
    letters = any(character.isalpha() for character in word)
    if any(character.isdigit() for character in word):
        return ["<number-mixed>" if letters else "<number>", UNKNOWN]
    if not letters:
        return ["<symbols>", UNKNOWN]
    if word.islower():
        shape = "lower"
    elif word.isupper():
        shape = "upper"
    else:
        shape = "title" if word[0].isupper() and word[1:].islower() else "mixed"
    endings = (word[-size:].lower() for size in range(min(_LONGEST_ENDING, len(word) - 1), 0, -1))
    return [*(f"<{shape}-{ending}>" for ending in endings), f"<{shape}>", UNKNOWN]
