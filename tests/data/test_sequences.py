import copy
import dataclasses
import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrohmm.data import Sequences

NAN = float("nan")
INF = float("inf")


def ragged(lengths, event_shape=(), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, *event_shape)) for length in lengths]


def full_data():
    """Four sequences with everything: inputs, labels and mask."""
    lengths = [3, 1, 4, 2]
    return Sequences.from_list(
        ragged(lengths, (2,)),
        inputs=ragged(lengths, (3,), seed=1),
        labels=[np.arange(length) for length in lengths],
        mask=[np.arange(length) != 1 for length in lengths],
    )


def same(a, b):
    """Whether all fields of two Sequences are equal."""
    for field in dataclasses.fields(Sequences):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, torch.Tensor):
            if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or not torch.equal(left, right):
                return False
        elif left != right:
            return False
    return True


class TestFromList:
    @pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 3)])
    @pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, np.ndarray.tolist])
    def test_pads_with_zeros(self, event_shape, convert):
        arrays = ragged([2, 4, 1], event_shape)
        data = Sequences.from_list([convert(array) for array in arrays])
        assert data.x.shape == (3, 4, *event_shape)
        assert data.event_shape == event_shape
        assert data.x.dtype == torch.get_default_dtype()
        assert data.lengths.tolist() == [2, 4, 1]
        assert data.lengths.dtype == torch.int64
        for x, array in zip(data.x.numpy(), arrays, strict=True):
            np.testing.assert_array_equal(x[: len(array)], array.astype(x.dtype))
            assert (x[len(array) :] == 0).all()
        assert data.inputs is None
        assert data.labels is None
        assert data.mask is None
        assert data.index.tolist() == [0, 1, 2]
        assert data.num_total == 3

    @given(
        st.lists(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6), min_size=1, max_size=5),
        st.sampled_from([1, 2]),
    )
    def test_to_list_inverts(self, values, repeats):
        arrays = [np.repeat(np.array(value)[:, None], repeats, axis=1) for value in values]
        for array, back in zip(arrays, Sequences.from_list(arrays, dtype=torch.float64).to_list(), strict=True):
            np.testing.assert_array_equal(back.numpy(), array)

    @pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
    def test_integers_become_int64(self, kind):
        data = Sequences.from_list([np.array([0, 1, 1], kind), np.array([1], kind)])
        assert data.x.dtype == torch.int64
        assert data.x.tolist() == [[0, 1, 1], [1, 0, 0]]

    def test_integers_and_floats_together_become_floats(self):
        data = Sequences.from_list([[1, 2], [0.5]])
        assert data.x.dtype == torch.get_default_dtype()
        assert data.x.tolist() == [[1, 2], [0.5, 0]]

    def test_dtype(self):
        data = Sequences.from_list([np.uint8([1, 0])], inputs=[[[1], [2]]], dtype=torch.float64)
        assert data.x.dtype == torch.float64
        assert data.inputs.dtype == torch.float64
        assert Sequences.from_list([[1, 0]], inputs=[[[1], [2]]]).inputs.dtype == torch.get_default_dtype()
        with pytest.raises(TypeError, match=r"dtype must be floating, or torch.int64.*got torch.int64"):
            Sequences.from_list([[0.5]], dtype=torch.int64)
        with pytest.raises(TypeError, match=r"dtype must be .*got torch.int32"):
            Sequences.from_list([[5]], dtype=torch.int32)

    def test_odd_memory_layouts(self):
        array = np.arange(12.0).reshape(4, 3)
        readonly = array.copy()
        readonly.flags.writeable = False
        data = Sequences.from_list([array[::-1], np.asfortranarray(array), array[:, ::1][::2], readonly])
        np.testing.assert_array_equal(data.x[0].numpy(), array[::-1])
        np.testing.assert_array_equal(data.x[1].numpy(), array)
        np.testing.assert_array_equal(data.x[2, :2].numpy(), array[::2])
        np.testing.assert_array_equal(data.x[3].numpy(), array)

    def test_does_not_share_memory(self):
        array = np.ones(3, np.float32)
        data = Sequences.from_list([array])
        array[0] = 7
        assert data.x.tolist() == [[1, 1, 1]]

    def test_extras_are_padded(self):
        data = full_data()
        past = ~data.valid
        assert data.inputs.shape == (4, 4, 3)
        assert (data.inputs[past] == 0).all()
        assert (data.inputs[data.valid] != 0).all()
        assert data.labels.tolist() == [[0, 1, 2, -1], [0, -1, -1, -1], [0, 1, 2, 3], [0, 1, -1, -1]]
        assert data.mask.dtype == torch.bool
        assert not data.mask[past].any()
        assert data.mask.sum(1).tolist() == [2, 1, 3, 1]
        assert (data.x[~data.mask] == 0).all()
        assert (data.x[data.mask] != 0).all()

    def test_missing_entries(self):
        data = Sequences.from_list([[[1.0, NAN], [3.0, 4.0]], [[NAN, NAN]]], mask="nan")
        assert data.mask.tolist() == [[[True, False], [True, True]], [[False, False], [False, False]]]
        assert data.x.tolist() == [[[1.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]
        assert data.observed.tolist() == [[True, True], [False, False]]
        assert data.num_observed == 2
        assert torch.equal(data.entries, data.mask)
        assert torch.equal(data[0].trim().entries, data.mask[:1])
        # Steps in some sequences, entries in others.
        both = Sequences.from_list([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]], mask=[[True, False], [[False, True]]])
        assert both.mask.tolist() == [[[True, True], [False, False]], [[False, True], [False, False]]]
        whole = Sequences.from_list([[1.0, NAN]], mask="nan")
        assert whole.mask.tolist() == [[True, False]] and whole.entries is None
        with pytest.raises(ValueError, match="mask must be arrays of bools, 'nan' or None, got 'no'"):
            Sequences.from_list([[1.0]], mask="no")

    def test_allowed_states(self):
        allowed = [[[True, False], [True, True]], [[False, True]]]
        data = Sequences.from_list([[1.0, 2.0], [3.0]], allowed=allowed)
        assert data.allowed.tolist() == [[[True, False], [True, True]], [[False, True], [True, True]]]
        assert "allowed" in repr(data)
        assert data[1:].trim().allowed.tolist() == [[[False, True]]]
        x = torch.zeros(1, 2)
        with pytest.raises(ValueError, match="allowed must leave a state at every step, got none at sequence 0"):
            Sequences(x, allowed=torch.tensor([[[True, True], [False, False]]]))
        with pytest.raises(ValueError, match=r"allowed must have shape \(1, 2, K\) with K >= 1, got \(1, 3, 2\)"):
            Sequences(x, allowed=torch.ones(1, 3, 2) > 0)
        with pytest.raises(TypeError, match="allowed must be bool"):
            Sequences(x, allowed=torch.ones(1, 2, 2))

    def test_missing_labels_and_masks_of_single_sequences(self):
        data = Sequences.from_list(
            [[1, 2], [3, 4]], labels=[None, np.uint8([1, 0])], mask=[np.array([True, False]), None]
        )
        assert data.labels.tolist() == [[-1, -1], [1, 0]]
        assert data.mask.tolist() == [[True, False], [True, True]]
        assert data.x.tolist() == [[1, 0], [3, 4]]

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_hidden_values_may_be_anything(self, value):
        data = Sequences.from_list([[[1.0, value], [2.0, 3.0]], [[4.0, 5.0]]], mask=[[False, True], [True]])
        assert data.x.tolist() == [[[0, 0], [2, 3]], [[4, 5], [0, 0]]]

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"arrays": []}, ValueError, "arrays must hold at least one sequence"),
            ({"arrays": [[1.0], []]}, ValueError, r"arrays\[1\] must have at least one step"),
            ({"arrays": [np.zeros((0, 3))]}, ValueError, r"arrays\[0\] must have at least one step, got .*\(0, 3\)"),
            ({"arrays": [1.0, 2.0]}, ValueError, r"arrays\[0\] must have shape .* single number 1.0"),
            ({"arrays": [np.zeros((2, 3)), np.zeros((2, 4))]}, ValueError, r"arrays\[1\] .*\(3,\), .*got \(4,\)"),
            ({"arrays": [[1.0], [[1.0]]]}, ValueError, r"arrays\[1\] must have steps of shape \(\), .*got \(1,\)"),
            ({"arrays": [[1.0], [[1.0], [1.0, 2.0]]]}, ValueError, r"arrays\[1\] must be a rectangular array"),
            ({"arrays": [["a", "b"]]}, ValueError, r"arrays\[0\] must be a rectangular array of numbers"),
            ({"arrays": [[1.0, None]]}, ValueError, r"arrays\[0\] must be a rectangular array of numbers"),
            ({"arrays": [None]}, ValueError, r"arrays\[0\] must be a rectangular array of numbers"),
            ({"arrays": [[1j]]}, TypeError, r"arrays\[0\] must be real, got complex128"),
            ({"arrays": [np.zeros((2, 0))]}, ValueError, "x must have shape .* without an axis of size 0"),
            (
                {"arrays": [[1.0], [1.0, NAN]]},
                ValueError,
                "x must be finite, got nan at sequence 1, step 1; pass mask",
            ),
            ({"arrays": [[1.0, -INF]]}, ValueError, "x must be finite, got -inf at sequence 0, step 1"),
            ({"arrays": [[1e300]], "dtype": torch.float32}, ValueError, "x must be finite, got inf at sequence 0"),
            (
                {"arrays": [[1.0, NAN], [NAN, 1.0]], "mask": [[True, False], [True, True]]},
                ValueError,
                "x must be finite, got nan at sequence 1, step 0, where mask is True",
            ),
            ({"inputs": [[[1.0]]]}, ValueError, "inputs must have one entry for each of 2 sequences, got 1"),
            ({"inputs": [[[1.0], [1.0]], [[1.0]]]}, ValueError, r"inputs\[0\] must have 3 steps, .*got 2"),
            ({"inputs": [np.zeros((3, 1)), np.zeros((1, 2))]}, ValueError, r"inputs\[1\] must have steps of shape"),
            ({"inputs": [np.zeros(3), np.zeros(1)]}, ValueError, r"inputs must have shape \(2, 3, C\)"),
            ({"inputs": [np.zeros((3, 1)), None]}, ValueError, r"inputs\[1\] must be a rectangular array"),
            (
                {"inputs": [np.zeros((3, 2)), np.array([[0.0, NAN]])]},
                ValueError,
                "inputs must be finite, got nan at sequence 1, step 0; inputs must be known",
            ),
            ({"labels": [[0, 1, 1]]}, ValueError, "labels must have one entry for each of 2 sequences, got 1"),
            ({"labels": [[0, 1, 1], [0, 1]]}, ValueError, r"labels\[1\] must have 1 steps, like arrays\[1\], got 2"),
            ({"labels": [[0, 1, -2], [0]]}, ValueError, "labels must be at least -1, got -2 at sequence 0, step 2"),
            ({"labels": [[0, 1, 1], [0.5]]}, TypeError, "labels must be integers, got float"),
            ({"labels": [np.zeros((3, 1), int), np.zeros((1, 1), int)]}, ValueError, "labels must have shape"),
            ({"mask": [None]}, ValueError, "mask must have one entry for each of 2 sequences, got 1"),
            ({"mask": [[True] * 3, [True] * 2]}, ValueError, r"mask\[1\] must have 1 steps"),
            ({"mask": [[1, 1, 1], [True]]}, TypeError, "mask must be bool"),
        ],
    )
    def test_errors(self, kwargs, error, message):
        kwargs = {"arrays": [[1.0, 2.0, 3.0], [4.0]], **kwargs}
        with pytest.raises(error, match=message):
            Sequences.from_list(**kwargs)


class TestConstructor:
    def test_defaults(self):
        x = torch.ones(2, 3)
        data = Sequences(x)
        assert data.x is x
        assert data.lengths.tolist() == [3, 3]
        assert data.index.tolist() == [0, 1]
        assert data.num_total == len(data) == 2
        assert data.num_observed == 6

    def test_padding_takes_one_form(self):
        lengths = torch.tensor([2, 1], dtype=torch.int32)
        x = torch.tensor([[1.0, 2.0, NAN], [3.0, INF, 4.0]])
        data = Sequences(
            x,
            lengths,
            inputs=x[..., None],
            labels=torch.full((2, 3), 5),
            mask=torch.tensor([[True, True, True], [True, False, True]]),
        )
        assert data.x.tolist() == [[1, 2, 0], [3, 0, 0]]
        assert data.inputs.tolist() == [[[1], [2], [0]], [[3], [0], [0]]]
        assert data.labels.tolist() == [[5, 5, -1], [5, -1, -1]]
        assert data.mask.tolist() == [[True, True, False], [True, False, False]]
        assert data.lengths.dtype == torch.int64
        assert x[0, 2].isnan()  # the caller's tensor is left as it was

    def test_same_as_from_list(self):
        data = full_data()
        assert same(data, Sequences(data.x, data.lengths, data.inputs, data.labels, data.mask))

    def test_whole_sequence_may_be_missing(self):
        data = Sequences(torch.full((1, 2), NAN), mask=torch.zeros(1, 2, dtype=torch.bool))
        assert data.num_observed == 0

    def test_keeps_the_graph(self):
        x = torch.ones(1, 2, requires_grad=True)
        Sequences(x, torch.tensor([1])).x.sum().backward()
        assert x.grad.tolist() == [[1, 0]]

    def test_is_immutable(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            full_data().num_total = 3  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
    def test_copies(self, duplicate):
        data = full_data()
        assert same(duplicate(data), data)

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"x": np.zeros((2, 3))}, TypeError, r"x must be a torch.Tensor \(for arrays use Sequences.from_list\)"),
            ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(N, T, \*event\).*got \(3,\)"),
            ({"x": torch.zeros(0, 3)}, ValueError, r"x must have shape.*got \(0, 3\)"),
            ({"x": torch.zeros(2, 3, dtype=torch.complex64)}, TypeError, "x must be real, got complex64"),
            ({"x": torch.full((2, 3), NAN)}, ValueError, "x must be finite, got nan at sequence 0, step 0"),
            ({"lengths": [3, 3]}, TypeError, "lengths must be a torch.Tensor"),
            ({"lengths": torch.tensor([3])}, ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
            ({"lengths": torch.tensor([3.0, 2.0])}, TypeError, "lengths must be integers, got float32"),
            ({"lengths": torch.tensor([3, 0])}, ValueError, "lengths must be from 1 to 3, got 0 at sequence 1"),
            ({"lengths": torch.tensor([4, 3])}, ValueError, "lengths must be from 1 to 3, got 4 at sequence 0"),
            ({"inputs": torch.zeros(2, 3)}, ValueError, r"inputs must have shape \(2, 3, C\).*got \(2, 3\)"),
            ({"inputs": torch.zeros(2, 2, 1)}, ValueError, r"inputs must have shape \(2, 3, C\).*got \(2, 2, 1\)"),
            ({"inputs": torch.zeros(2, 3, 0)}, ValueError, "inputs must have shape"),
            ({"inputs": torch.zeros(2, 3, 1).long()}, TypeError, "inputs must be floating, got int64"),
            ({"inputs": torch.full((2, 3, 1), INF)}, ValueError, "inputs must be finite, got inf at sequence 0"),
            ({"labels": torch.zeros(2, 2).long()}, ValueError, r"labels must have shape \(2, 3\), got \(2, 2\)"),
            ({"labels": torch.zeros(2, 3)}, TypeError, "labels must be integers, got float32"),
            ({"labels": torch.zeros(2, 3) > 1}, TypeError, "labels must be integers, got bool"),
            ({"mask": torch.ones(2, 3, 1) > 0}, ValueError, r"mask must have shape \(2, 3\), got \(2, 3, 1\)"),
            ({"mask": torch.ones(2, 3)}, TypeError, "mask must be bool"),
            ({"index": torch.tensor([0])}, ValueError, r"index must have shape \(2,\)"),
            ({"index": torch.tensor([0, -1])}, ValueError, "index must be at least 0, got -1 at sequence 1"),
            ({"index": torch.tensor([0, 5])}, ValueError, r"num_total must be greater than every index \(5\), got 2"),
            ({"num_total": 1}, ValueError, r"num_total must be greater than every index \(1\), got 1"),
            ({"num_total": 9.0}, TypeError, "num_total must be an int"),
        ],
    )
    def test_errors(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            Sequences(**{"x": torch.zeros(2, 3), **kwargs})


class TestCounts:
    def test_valid_and_observed(self):
        data = full_data()
        assert data.num_steps == 4
        assert data.valid.sum(1).tolist() == data.lengths.tolist()
        assert torch.equal(data.observed, data.mask)
        assert data.num_observed == 7
        unmasked = Sequences(data.x, data.lengths)
        assert torch.equal(unmasked.observed, unmasked.valid)
        assert unmasked.num_observed == 10

    def test_repr(self):
        assert repr(full_data()) == (
            "Sequences(4 sequences of 1 to 4 steps, event_shape=(2,), float32, inputs=3, labels, mask)"
        )
        assert repr(full_data()[2]) == (
            "Sequences(1 sequence out of 4 of 4 steps, event_shape=(2,), float32, inputs=3, labels, mask)"
        )
        assert repr(Sequences.from_list([[1, 2]])) == "Sequences(1 sequence of 2 steps, event_shape=(), int64)"


class TestSubsets:
    @pytest.mark.parametrize(
        ("item", "rows"),
        [
            (0, [0]),
            (-1, [3]),
            (np.int64(2), [2]),
            (torch.tensor(2), [2]),
            (slice(1, 3), [1, 2]),
            (slice(None, None, -2), [3, 1]),
            ([3, 0, 3], [3, 0, 3]),
            (np.array([1, -1]), [1, 3]),
            (torch.tensor([2, 1], dtype=torch.int32), [2, 1]),
            (torch.tensor([False, True, False, True]), [1, 3]),
            ([True, False, False, False], [0]),
        ],
    )
    def test_getitem(self, item, rows):
        data = full_data()
        part = data[item]
        assert len(part) == len(rows)
        assert part.num_steps == data.num_steps
        assert part.index.tolist() == rows
        assert part.num_total == 4
        for name in ("x", "lengths", "inputs", "labels", "mask"):
            assert torch.equal(getattr(part, name), getattr(data, name)[rows])

    def test_index_of_a_subset_refers_to_the_whole(self):
        data = full_data()
        part = data[[3, 1, 0]][1:]
        assert part.index.tolist() == [1, 0]
        assert same(part, data[part.index])

    @pytest.mark.parametrize(
        ("item", "error", "message"),
        [
            (4, IndexError, "item must index 4 sequences, got 4"),
            (-5, IndexError, "item must index 4 sequences, got -5"),
            ([0, 4], IndexError, "item must index 4 sequences"),
            ([], IndexError, "item must select at least one sequence"),
            (slice(2, 2), IndexError, "item must select at least one sequence"),
            (torch.zeros(4) > 1, IndexError, "item must select at least one sequence"),
            (torch.zeros(3) > -1, IndexError, r"item must have shape .* got bool \(3,\)"),
            (True, IndexError, r"item must have shape .* got bool \(\)"),
            (torch.zeros(1, 1).long(), IndexError, r"item must have shape .* got int64 \(1, 1\)"),
            (torch.tensor([0.0]), TypeError, "item must be an integer, a slice, indices or a bool mask, got float32"),
        ],
    )
    def test_getitem_errors(self, item, error, message):
        with pytest.raises(error, match=message):
            full_data()[item]

    def test_iteration(self):
        data = full_data()
        parts = list(data)
        assert [part.index.tolist() for part in parts] == [[0], [1], [2], [3]]
        assert same(parts[2], data[2])

    def test_trim(self):
        data = full_data()
        part = data[[1, 3]].trim()
        assert part.num_steps == 2
        for name in ("x", "inputs", "labels", "mask"):
            assert torch.equal(getattr(part, name), getattr(data, name)[[1, 3], :2])
        assert same(data.trim(), data)

    def test_as_whole(self):
        part = full_data()[[3, 1]].as_whole()
        assert part.index.tolist() == [0, 1]
        assert part.num_total == 2
        assert same(part, Sequences(part.x, part.lengths, part.inputs, part.labels, part.mask))


class TestBatches:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(1, 12), st.booleans())
    def test_every_sequence_once_and_trimmed(self, lengths, batch_size, shuffle):
        data = Sequences.from_list(ragged(lengths, (2,)))
        batches = list(data.batches(batch_size, shuffle=shuffle, generator=torch.Generator().manual_seed(0)))
        sizes = [len(batch) for batch in batches]
        assert sizes[:-1] == [batch_size] * (len(lengths) // batch_size - (sizes[-1] == batch_size))
        assert sum(sizes) == len(lengths)
        index = torch.cat([batch.index for batch in batches]).tolist()
        assert sorted(index) == list(range(len(lengths)))
        assert shuffle or index == sorted(index)
        for batch in batches:
            assert same(batch, data[batch.index].trim())
            assert batch.num_steps == batch.lengths.max()

    def test_all_fields(self):
        data = full_data()
        for batch in data.batches(3):
            assert same(batch, data[batch.index].trim())

    def test_shuffle_is_reproducible(self):
        data = Sequences(torch.zeros(50, 1))

        def order(seed):
            generator = torch.Generator().manual_seed(seed)
            return [batch.index.tolist() for batch in data.batches(8, shuffle=True, generator=generator)]

        assert order(0) == order(0)
        assert order(0) != order(1)

    def test_generator_moves_on_between_epochs(self):
        data = Sequences(torch.zeros(50, 1))
        generator = torch.Generator().manual_seed(0)
        first, second = (next(data.batches(50, shuffle=True, generator=generator)).index for _ in range(2))
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_error_comes_at_the_call(self, batch_size):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            full_data().batches(batch_size)


class TestSplit:
    @given(st.integers(2, 40), st.sampled_from([(1.0,), (0.5, 0.5), (0.9, 0.1), (0.34, 0.33, 0.33)]), st.integers(0, 3))
    def test_parts_are_disjoint_and_complete(self, num_sequences, fractions, seed):
        data = Sequences(torch.arange(num_sequences)[:, None])
        try:
            parts = data.split(fractions, seed)
        except ValueError:
            assert min(fractions) * num_sequences < 1
            return
        values = [part.x[:, 0].tolist() for part in parts]
        assert sorted(chain.from_iterable(values)) == list(range(num_sequences))
        for part, value, fraction in zip(parts, values, fractions, strict=True):
            assert value == sorted(value)
            assert abs(len(part) - fraction * num_sequences) <= 1
            assert part.num_total == len(part)
            assert part.index.tolist() == list(range(len(part)))

    def test_seed(self):
        data = Sequences(torch.arange(30)[:, None])
        assert same(data.split([0.5, 0.5], 1)[0], data.split([0.5, 0.5], 1)[0])
        assert not same(data.split([0.5, 0.5], 1)[0], data.split([0.5, 0.5], 2)[0])

    @pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [1.5, -0.5], [1.0, 0.0]])
    def test_bad_fractions(self, fractions):
        with pytest.raises(ValueError, match="fractions must be positive and sum to 1"):
            full_data().split(fractions)

    def test_empty_part(self):
        with pytest.raises(ValueError, match="fractions must leave each part at least one of 4 sequences"):
            full_data().split([0.95, 0.05])


class TestTo:
    def test_dtype_changes_floating_tensors_only(self):
        data = full_data()[1:]
        double = data.to(dtype=torch.float64)
        assert double.x.dtype == double.inputs.dtype == torch.float64
        assert same(double.to(dtype=torch.float32), data)
        assert double.labels.dtype == double.lengths.dtype == double.index.dtype == torch.int64
        assert double.mask.dtype == torch.bool
        assert Sequences.from_list([[1, 2]]).to(dtype=torch.float64).x.dtype == torch.int64

    def test_device_moves_every_tensor(self):
        moved = full_data().to("meta")
        for name in ("x", "lengths", "inputs", "labels", "mask", "index"):
            assert getattr(moved, name).device.type == "meta"
        assert moved.valid.device.type == "meta"

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_gpu(self):
        data = full_data()
        moved = data.to("cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        for batch in moved.batches(3, shuffle=True, generator=generator):
            assert batch.x.is_cuda
            assert same(batch.to("cpu"), data[batch.index.cpu()].trim())
        cpu_extras = Sequences(moved.x, data.lengths, data.inputs, data.labels, data.mask)
        assert same(cpu_extras, moved)
        assert moved.as_whole().index.is_cuda

    def test_errors(self):
        with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.int64"):
            full_data().to(dtype=torch.int64)
        with pytest.raises(ValueError, match=r"x must be finite, got inf at sequence 0, step 1 as torch\.float16"):
            Sequences(torch.tensor([[1.0, 1e6]])).to(dtype=torch.float16)
