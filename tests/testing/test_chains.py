import math

import pytest
import torch

from pyrohmm.testing import Chain, poison_padding, random_chain


@pytest.mark.parametrize(
    ("transitions", "shape"), [("shared", (3, 3)), ("constant", (2, 5, 1, 3, 3)), ("each", (2, 5, 3, 3, 3))]
)
def test_shapes(transitions, shape):
    chain = random_chain(3, 4, (2, 5), transitions=transitions, lengths="ragged", dtype=torch.float32)
    assert [tuple(logits.shape) for logits in chain.logits] == [(2, 5, 3), shape, (2, 5, 4, 3)]
    assert {logits.dtype for logits in chain.logits} == {torch.float32}
    assert chain.lengths is not None
    assert chain.lengths.shape == (2, 5)
    assert chain.lengths.dtype == torch.int64
    assert chain.batch_shape == (2, 5)


def test_the_seed_decides_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = (random_chain(3, 4, (2,), lengths="ragged", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a.observation_logits, c.observation_logits)


def test_dtypes_have_the_same_values():
    single, double = (random_chain(dtype=dtype, impossible=0.3) for dtype in (torch.float32, torch.float64))
    assert all(torch.equal(x, y) for x, y in zip(single.logits, double.to(torch.float32).logits, strict=True))


def test_impossible_is_a_fraction_of_the_entries():
    chain = random_chain(20, 30, transitions="each", impossible=0.25)
    for logits in chain.logits[1:]:
        assert (logits == -math.inf).double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (random_chain(impossible=1.0).transition_logits == -math.inf).all()
    assert random_chain(impossible=0.0).transition_logits.isfinite().all()


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_broadcast_gives_each_dimension_to_one_potential(transitions):
    for seed in range(5):
        chain = random_chain(2, 3, (4, 5), transitions=transitions, broadcast=True, seed=seed)
        batches = [chain.initial_logits.shape[:-1], chain.observation_logits.shape[:-2]]
        if transitions != "shared":
            batches.append(chain.transition_logits.shape[:-3])
        assert chain.batch_shape == (4, 5)
        assert sorted(n for n, *_ in batches) == [1] * (len(batches) - 1) + [4]
        assert sorted(n for _, n in batches) == [1] * (len(batches) - 1) + [5]


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_scattered_memory_holds_the_same_values_among_nan(transitions):
    plain, scattered = (
        random_chain(3, 4, (2,), transitions=transitions, contiguous=contiguous) for contiguous in (True, False)
    )
    for x, y in zip(plain.logits, scattered.logits, strict=True):
        assert torch.equal(x, y)
        assert not y.is_contiguous()
        memory = torch.as_strided(y, (2 * y.numel(),), (1,))
        assert memory.isnan().sum() == y.numel()


def test_poison_is_what_no_sequence_reads():
    lengths = torch.tensor([0, 1, 2, 4])
    chain = random_chain(2, 4, (4,), transitions="each", lengths=lengths, poison=True)
    assert chain.initial_logits.isnan().all(-1).tolist() == [True, False, False, False]
    assert (~chain.observation_logits.isnan()).all(-1).sum(-1).tolist() == [0, 1, 2, 4]
    assert (~chain.transition_logits.isnan()).all((-1, -2)).sum(-1).tolist() == [0, 0, 1, 3]
    # An entry is poisoned with all its states or not at all.
    assert (chain.observation_logits.isnan().sum(-1) % 2 == 0).all()


def test_poison_spares_what_a_longer_sequence_reads():
    chain = Chain(torch.zeros(2), torch.zeros(1, 2, 2), torch.zeros(1, 4, 2), torch.tensor([1, 3]))
    poisoned = poison_padding(chain)
    assert torch.equal(poisoned.initial_logits, chain.initial_logits)
    assert torch.equal(poisoned.transition_logits, chain.transition_logits)
    assert poisoned.observation_logits.isnan().all(-1).tolist() == [[False, False, False, True]]


def test_poison_without_padding_changes_nothing():
    plain, poisoned = (random_chain(2, 3, (2,), transitions="each", poison=poison) for poison in (False, True))
    assert all(torch.equal(x, y) for x, y in zip(plain.logits, poisoned.logits, strict=True))


def test_requires_grad_keeps_strides():
    chain = random_chain(3, 4, contiguous=False)
    leaves = chain.requires_grad()
    assert all(x.is_leaf and x.requires_grad for x in leaves.logits)
    assert [x.stride() for x in leaves.logits] == [x.stride() for x in chain.logits]
    assert not any(x.requires_grad for x in chain.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transitions": "every"}, "transitions must be 'shared', 'constant' or 'each', but got 'every'"),
        ({"impossible": 1.5}, "impossible must be a fraction between 0 and 1, but got 1.5"),
        ({"lengths": "short"}, "lengths must be a tensor, 'ragged' or None, but got 'short'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_chain(**arguments)
