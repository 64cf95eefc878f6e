import os

import pytest
import torch

from pyrohmm.data import TaggedWords, load_ud_english_ewt
from pyrohmm.data import ud_english_ewt as module
from tests.data import miniature

needs_files = pytest.mark.skipif("PYROHMM_DATA" not in os.environ, reason="PYROHMM_DATA names no data folder")

# Ten rare words in -ing, and ten that share their last letter with these and nothing else.
NAPS = [f"{letter}apping" for letter in "bcdfghjklm"] + [f"{letter}ax{letter}g" for letter in "bcdfghjklm"]
TRAIN = [
    [("The", "DET"), ("cat", "NOUN"), ("naps", "VERB"), (".", "PUNCT")],
    [("the", "DET"), ("cat", "NOUN"), ("naps", "VERB")],
    [("the", "DET"), ("Zuo", "PROPN"), ("has", "AUX"), ("3", "NUM"), (".", "PUNCT")],
    [(".", "PUNCT")],
    [(nap, "VERB") for nap in NAPS],
]
VALID = [[("the", "DET"), ("dozing", "VERB"), ("cat", "NOUN"), ("dog", "NOUN"), ("Zuo", "PROPN"), ("é", "X")]]
TEST = [[("cat", "NOUN")], [("3pm", "NUM")]]
WORDS = ("<unk>", "<lower-g>", "<lower-ing>", "<lower-ng>", "<lower>", ".", "cat", "naps", "the")


@needs_files
def test_counts_of_the_real_set():
    data = load_ud_english_ewt()
    parts = data.train, data.valid, data.test
    assert tuple(len(part) for part in parts) == (12544, 2001, 2077)
    assert tuple(part.num_observed for part in parts) == (204577, 25147, 25094)
    for part in parts:
        assert part.event_shape == ()
        assert part.num_total == len(part)
        assert part.labels.max() == 16
        assert (part.labels[part.valid] >= 0).all()
        assert part.x.max() < len(data.words)
    assert data.tags == module.TAGS
    tags = data.train.labels[data.train.valid]
    assert data.tags[int(tags.bincount().argmax())] == "NOUN"
    the = data.train.x == data.words.index("the")
    assert (data.train.labels[the] == data.tags.index("DET")).double().mean() > 0.99
    ing = data.test.x == data.words.index("<lower-ing>")
    assert (data.test.labels[ing] == data.tags.index("VERB")).double().mean() > 0.5


@needs_files
def test_rare_words_of_the_real_set():
    data = load_ud_english_ewt(min_count=3, unknown="one")
    counts = data.train.x[data.train.valid].bincount(minlength=len(data.words))
    assert data.words[0] == "<unk>"
    assert counts[1:].min() == 3
    assert (counts[1:].diff() <= 0).all()  # the frequent ones first
    assert data.train.num_observed == 204577


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """Three files in a data folder, in the place of the real ones."""
    folder = tmp_path / "ud_english_ewt"
    files = {}
    for part, (file, _) in module._FILES.items():
        files[part] = file, miniature.write_conllu(folder / file, {"train": TRAIN, "valid": VALID, "test": TEST}[part])
    monkeypatch.setattr(module, "_FILES", files)
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def as_words(data, part):
    return [[data.words[i] for i in x] for x in part.to_list()]


def test_words_tags_and_lengths(small_set):
    data = load_ud_english_ewt()
    assert isinstance(data, TaggedWords)
    assert data.words == WORDS
    for part, sentences in ((data.train, TRAIN), (data.valid, VALID), (data.test, TEST)):
        assert part.x.dtype == torch.int64
        assert part.lengths.tolist() == [len(sentence) for sentence in sentences]
        tags = [[data.tags[i] for i in row[row >= 0]] for row in part.labels]
        assert tags == [[tag for _, tag in sentence] for sentence in sentences]
    assert as_words(data, data.train)[:4] == [
        ["<unk>", "cat", "naps", "."],
        ["the", "cat", "naps"],
        ["the", "<unk>", "<lower>", "<unk>", "."],
        ["."],
    ]
    assert as_words(data, data.train)[4] == ["<lower-ing>"] * 10 + ["<lower-g>"] * 10
    assert as_words(data, data.valid) == [["the", "<lower-ing>", "cat", "<lower-g>", "<unk>", "<lower>"]]
    assert as_words(data, data.test) == [["cat"], ["<unk>"]]


def test_one_symbol_for_all_rare_words(small_set):
    data = load_ud_english_ewt(unknown="one")
    assert data.words == ("<unk>", ".", "cat", "naps", "the")
    assert as_words(data, data.valid) == [["the", "<unk>", "cat", "<unk>", "<unk>", "<unk>"]]


def test_how_often_a_word_must_occur(small_set):
    words = load_ud_english_ewt(min_count=1).words
    assert words[0] == "<unk>"
    assert set(words[1:]) == {word for sentence in TRAIN for word, _ in sentence}
    assert load_ud_english_ewt(min_count=3, unknown="one").words == ("<unk>", ".")


def test_words_written_like_a_class(small_set, monkeypatch):
    sentences = [*TRAIN, [("<unk>", "X"), ("<lower-ing>", "X"), ("<lower-ing>", "X"), ("<unk>", "X")]]
    files = module._FILES | {"train": ("odd.conllu", miniature.write_conllu(small_set / "odd.conllu", sentences))}
    monkeypatch.setattr(module, "_FILES", files)
    assert load_ud_english_ewt().words == WORDS


@pytest.mark.parametrize(
    ("word", "classes"),
    [
        ("dozing", ["<lower-ing>", "<lower-ng>", "<lower-g>", "<lower>", "<unk>"]),
        ("Paris", ["<title-ris>", "<title-is>", "<title-s>", "<title>", "<unk>"]),
        ("NATO", ["<upper-ato>", "<upper-to>", "<upper-o>", "<upper>", "<unk>"]),
        ("iPod", ["<mixed-pod>", "<mixed-od>", "<mixed-d>", "<mixed>", "<unk>"]),
        ("ox", ["<lower-x>", "<lower>", "<unk>"]),
        ("é", ["<lower>", "<unk>"]),
        ("字", ["<mixed>", "<unk>"]),
        ("3", ["<number>", "<unk>"]),
        ("9-5", ["<number>", "<unk>"]),
        ("9pm", ["<number-mixed>", "<unk>"]),
        (":-)", ["<symbols>", "<unk>"]),
    ],
)
def test_classes(word, classes):
    assert module._classes(word) == classes


def test_encodes_sentences_of_ones_own(small_set):
    data = load_ud_english_ewt()
    encoded = data.encode([["the", "snoring", "cat"], ["."]])
    assert as_words(data, encoded) == [["the", "<lower-ing>", "cat"], ["."]]
    assert encoded.labels is None
    with pytest.raises(ValueError, match="at least one"):
        data.encode([])


def test_other_columns_may_differ(small_set):
    path = small_set / "en_ewt-ud-dev.conllu"
    path.write_text(path.read_text().replace("\troot\t", "\tnsubj\t").replace("# text", "\n# the text"))
    assert load_ud_english_ewt().valid.lengths.tolist() == [6]


@pytest.mark.parametrize("change", [("dozing\tdozing\tVERB", "dozing\tdozing\tNOUN"), ("\tcat\t", "\tcow\t")])
def test_other_words_or_tags(small_set, change):
    path = small_set / "en_ewt-ud-dev.conllu"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=r"en_ewt-ud-dev.conllu .* SHA-256") as caught:
        load_ud_english_ewt()
    assert "verify=False" in caught.value.__notes__[0]
    assert load_ud_english_ewt(verify=False).valid.lengths.tolist() == [6]


def test_downloads(small_set, monkeypatch, tmp_path):
    monkeypatch.delenv("PYROHMM_DATA")
    monkeypatch.setattr(module, "_URL", small_set.as_uri() + "/")
    assert load_ud_english_ewt().words == WORDS
    assert (tmp_path / "cache" / "pyrohmm" / "ud_english_ewt" / "en_ewt-ud-train.conllu").exists()


def test_empty_lines_and_a_last_sentence_without_one(tmp_path):
    path = tmp_path / "some.conllu"
    path.write_text("\n\n1\ta" + "\t_\tX" + "\t_" * 6 + "\n\n\n# b\n1\tb" + "\t_\tX" + "\t_" * 6)
    assert list(module.read_conllu(path)) == [(["a"], ["X"]), (["b"], ["X"])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tcat\tcat\tNOUN", "line 2: expected 10 columns of CoNLL-U, got '1.tcat.tcat.tNOUN'"),
        ("cat" + "\t_" * 9, "line 2: expected 10 columns"),
        ("1\tcat\tcat\tNN" + "\t_" * 6, "line 2: expected one of ADJ, .*, X, got 'NN'"),
    ],
)
def test_files_of_another_format(small_set, line, message):
    (small_set / "en_ewt-ud-train.conllu").write_text(f"# cats\n{line}\n")
    for verify in (True, False):
        with pytest.raises(ValueError, match=message):
            load_ud_english_ewt(verify=verify)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"min_count": 0}, ValueError, "min_count must be at least 1, got 0"),
        ({"min_count": 2.0}, TypeError, "min_count must be an int, got .*float"),
        ({"unknown": "suffix"}, ValueError, "unknown must be 'classes' or 'one', got 'suffix'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        load_ud_english_ewt(**arguments)
