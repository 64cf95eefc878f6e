"""Bad input, through the public ops: the error names the argument and what is wrong with it."""

import math
import re

import pyro
import pytest
import torch

from pyrohmm import ops
from pyrohmm.testing import Chain, random_chain
from tests.ops.cases import OPS

NAMES = Chain._fields[:3]
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@pytest.fixture(autouse=True)
def validation():
    with pyro.validation_enabled(True):
        yield


def with_entries(chain: Chain, name: str, value: float, *indices: tuple[int, ...]) -> Chain:
    logits = getattr(chain, name).clone()
    for index in indices:
        logits[index] = value
    return chain._replace(**{name: logits})


@every_op
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "transitions", "first", "second"),
    [
        ("initial_logits", "shared", (1, 0), (1, 2)),
        ("transition_logits", "shared", (0, 1), (2, 0)),
        ("transition_logits", "constant", (1, 0, 2, 1), (2, 0, 0, 0)),
        ("transition_logits", "each", (1, 2, 0, 1), (2, 0, 0, 0)),
        ("observation_logits", "shared", (1, 2, 0), (2, 0, 0)),
    ],
)
def test_nan_and_inf(op, value, name, transitions, first, second):
    chain = with_entries(random_chain(3, 4, (3,), transitions=transitions), name, value, second, first)
    index = ", ".join(map(str, first))
    with pytest.raises(ValueError, match=rf"{name}.*\b{index}\b"):
        op(*chain.logits)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_without_a_batch(name):
    chain = random_chain(2, 3, transitions="each")
    index = (1,) * getattr(chain, name).dim()
    with pytest.raises(ValueError, match=rf"{name}.*\b{', '.join('1' for _ in index)}\b"):
        ops.log_partition(*with_entries(chain, name, math.nan, index).logits)


def test_the_first_offending_entry_is_sought_within_the_lengths():
    chain = random_chain(2, 4, (2,), lengths=torch.tensor([1, 3]))
    chain = with_entries(chain, "observation_logits", math.nan, (0, 2, 0), (1, 1, 1), (1, 3, 0))
    with pytest.raises(ValueError, match=r"observation_logits.*\b1, 1, 1\b"):
        ops.log_partition(*chain.logits, lengths=chain.lengths)


def test_a_shared_entry_is_looked_at_if_one_sequence_reads_it():
    lengths = torch.tensor([1, 3])
    chain = random_chain(2, 4, (1,), lengths=lengths)
    with pytest.raises(ValueError, match=r"observation_logits.*\b0, 2, 1\b"):
        ops.log_partition(*with_entries(chain, "observation_logits", math.inf, (0, 2, 1)).logits, lengths=lengths)
    assert (
        ops.log_partition(*with_entries(chain, "observation_logits", math.inf, (0, 3, 1)).logits, lengths=lengths)
        .isfinite()
        .all()
    )


@every_op
def test_padding_is_not_looked_at(op):
    chain = random_chain(3, 4, (4,), transitions="each", lengths=torch.tensor([0, 1, 2, 3]), poison=True)
    result = op(*chain.logits, lengths=chain.lengths)
    for values in result if isinstance(result, tuple) else (result,):
        assert not values.isnan().any()


@every_op
def test_minus_infinity_is_legal(op):
    chain = random_chain(3, 4, (4,), impossible=0.5)
    result = op(*chain.logits)
    for values in result if isinstance(result, tuple) else (result,):
        assert not values.isnan().any()


@every_op
@pytest.mark.parametrize("name", NAMES)
def test_pyros_switch_turns_the_search_for_nan_off(op, name):
    chain = random_chain(3, 4, (3,))
    chain = chain._replace(**{name: torch.full_like(getattr(chain, name), math.nan)})
    with pytest.raises(ValueError, match=name):
        op(*chain.logits)
    with pyro.validation_enabled(False):
        op(*chain.logits)


@every_op
@pytest.mark.parametrize(("lengths", "what"), [([1, 5, 2], "5"), ([1, 2, -1], "-1")])
def test_lengths_out_of_range(op, lengths, what):
    chain = random_chain(3, 4, (3,))
    with pytest.raises(ValueError, match=rf"lengths.*{what}"):
        op(*chain.logits, lengths=torch.tensor(lengths))


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_lengths_of_wrong_dtype(op, dtype):
    chain = random_chain(3, 4, (3,))
    with pytest.raises((TypeError, ValueError), match="lengths"):
        op(*chain.logits, lengths=torch.ones(3, dtype=dtype))


@every_op
@pytest.mark.parametrize(
    ("name", "shape", "got"),
    [
        ("initial_logits", (4,), "(4,)"),  # 4 states, not 3
        ("initial_logits", (2, 3), "(2,"),  # a batch of 2, not 5
        ("initial_logits", (), "()"),
        ("transition_logits", (4, 4), "(4, 4)"),
        ("transition_logits", (3, 4), "(3, 4)"),
        ("transition_logits", (4, 3), "(4, 3)"),
        ("transition_logits", (3,), "(3,)"),
        ("transition_logits", (2, 3, 3), "(2, 3, 3)"),  # neither 1 nor T-1 steps
        ("transition_logits", (4, 3, 3), "(4, 3, 3)"),  # T steps: a transition too many
        ("transition_logits", (2, 3, 3, 3), "(2,"),  # a batch of 2, not 5
        ("observation_logits", (5, 4, 2), "(5, 4, 2)"),
        ("observation_logits", (3,), "(3,)"),
        ("observation_logits", (2, 4, 3), "(2,"),
        ("lengths", (2,), "(2,)"),
    ],
)
def test_shapes_that_do_not_fit(op, name, shape, got):
    chain = random_chain(3, 4, (5,), lengths="ragged")
    dtype = torch.int64 if name == "lengths" else torch.float64
    chain = chain._replace(**{name: torch.zeros(shape, dtype=dtype)})
    with pytest.raises(ValueError, match=rf"{name}.*{re.escape(got)}"):
        op(*chain.logits, lengths=chain.lengths)


@every_op
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_dtypes_that_do_not_fit(op, name, dtype):
    chain = random_chain(3, 4)
    chain = chain._replace(**{name: getattr(chain, name).to(dtype)})
    with pytest.raises((TypeError, ValueError), match=rf"(?s){name}.*{dtype}|{dtype}.*{name}"):
        op(*chain.logits)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_tensor(name):
    chain = random_chain(3, 4)
    chain = chain._replace(**{name: getattr(chain, name).tolist()})
    with pytest.raises((TypeError, ValueError), match=name):
        ops.log_partition(*chain.logits)


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(k):
    with pytest.raises(ValueError, match=rf"\bk\b.*{k}"):
        ops.k_best(*random_chain().logits, k=k)


def test_transitions_must_be_known():
    with pytest.raises(ValueError, match=r"transitions.*all"):
        ops.smooth(*random_chain().logits, transitions="all")  # pyright: ignore[reportArgumentType]


@every_op
def test_an_empty_batch_has_empty_results(op):
    chain = random_chain(3, 4, (0,), transitions="each")
    result = op(*chain.logits, lengths=torch.zeros(0, dtype=torch.int64))
    for values in result if isinstance(result, tuple) else (result,):
        assert values.shape[0] == 0
