"""Ragged sequences with inputs, labels and missing steps, as padded tensors."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Sequences:
    """N sequences of different lengths, as one tensor padded on the right.

    Every instance has at least one sequence, and every sequence at least one step.
    Padding is put into one form: past the length x and inputs are 0, labels -1, mask False.
    Where mask is False within the length, the stored x is 0 too, so x never holds a NaN.
    Past the length, allowed is True everywhere.

    A subset (``data[...]`` or a minibatch) keeps ``index`` and ``num_total``, its place in the whole set:
    ``pyro.plate("sequences", data.num_total, subsample=data.index)`` then scales the likelihood by num_total / N.
    :meth:`as_whole` makes a subset a set of its own.

    Args:
        x: observations (N, T, *event), floating or integer (kept as int64).
        lengths: steps of each sequence (N,), integers from 1 to T. Default: all T.
        inputs: covariates (N, T, C), floating, known at every step within the length.
        labels: known states (N, T), integers, -1 where unknown.
        mask: bool, True where x is observed: (N, T) for steps, or (N, T, *event) for single entries of x (kept as
            steps if no step is observed in part). Default: all steps within the length.
        allowed: (N, T, K) bool, True for the states that are possible at a step, at least one at every step: labels
            that are known in part, such as "A or B". Default: all.
        index: place of each sequence in the whole set (N,), integers from 0 to num_total - 1. Default: 0, ..., N - 1.
        num_total: number of sequences in the whole set. Default: N.

    The other tensors are moved to the device of x.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong kind of dtype.
        ValueError: a shape does not fit, a value is out of range, or x (where observed) or inputs are not finite.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
        >>> data = Sequences(x, torch.tensor([3, 2]))
        >>> data
        Sequences(2 sequences of 2 to 3 steps, event_shape=(), float32)
        >>> data.x
        tensor([[1., 2., 3.],
                [4., 5., 0.]])
    """

    x: Tensor
    lengths: Tensor
    inputs: Tensor | None
    labels: Tensor | None
    mask: Tensor | None
    allowed: Tensor | None
    index: Tensor
    num_total: int

    def __init__(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        inputs: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        index: Tensor | None = None,
        num_total: int | None = None,
        allowed: Tensor | None = None,
    ) -> None:
        _check_tensor("x", x)
        if x.ndim < 2 or 0 in x.shape:
            raise ValueError(f"x must have shape (N, T, *event) without an axis of size 0, got {tuple(x.shape)}")
        if x.is_complex():
            raise TypeError(f"x must be real, got {_dtype_name(x)}")
        num_sequences, num_steps = x.shape[:2]
        if not x.is_floating_point():
            x = x.long()

        if lengths is None:
            lengths = torch.full((num_sequences,), num_steps)
        lengths = _integers("lengths", lengths, (num_sequences,), x.device)
        _check_range("lengths", lengths, 1, num_steps)
        valid = torch.arange(num_steps, device=x.device) < lengths[:, None]

        observed = valid
        if mask is not None:
            _check_tensor("mask", mask)
            if mask.shape != x.shape:
                _check_shape("mask", mask, (num_sequences, num_steps))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be bool (True where observed), got {_dtype_name(mask)}")
            mask = mask.to(x.device) & _widen(valid, mask.ndim)
            # Whole steps, if these are all that is missing, are simpler for all who read it.
            if mask.ndim > 2 and (mask == _widen(steps := mask.flatten(2)[..., 0], mask.ndim)).all():
                mask = steps
            observed = mask
        x = _fill(x, ~observed, 0)
        hint = (
            "; pass mask= with False at what is missing, or 'nan' (from_list)"
            if mask is None
            else ", where mask is True"
        )
        _check_finite("x", x, hint)

        if inputs is not None:
            _check_tensor("inputs", inputs)
            if inputs.ndim != 3 or inputs.shape[:2] != x.shape[:2] or inputs.shape[2] == 0:
                raise ValueError(
                    f"inputs must have shape ({num_sequences}, {num_steps}, C) with C >= 1, got {tuple(inputs.shape)}"
                )
            if not inputs.is_floating_point():
                raise TypeError(f"inputs must be floating, got {_dtype_name(inputs)}")
            inputs = _fill(inputs.to(x.device), ~valid, 0)
            _check_finite("inputs", inputs, "; inputs must be known at every step")

        if labels is not None:
            labels = _integers("labels", labels, (num_sequences, num_steps), x.device)
            labels = _fill(labels, ~valid, -1)
            _check_range("labels", labels, -1, None)

        if allowed is not None:
            _check_tensor("allowed", allowed)
            if allowed.ndim != 3 or allowed.shape[:2] != x.shape[:2] or allowed.shape[2] == 0:
                raise ValueError(
                    f"allowed must have shape ({num_sequences}, {num_steps}, K) with K >= 1, got {tuple(allowed.shape)}"
                )
            if allowed.dtype != torch.bool:
                raise TypeError(f"allowed must be bool (True for possible states), got {_dtype_name(allowed)}")
            allowed = allowed.to(x.device) | ~valid.unsqueeze(-1)
            if not (some := allowed.any(-1)).all():
                where = (~some).nonzero()[0].tolist()
                raise ValueError(f"allowed must leave a state at every step, got none at {_place(where)}")

        if index is None:
            index = torch.arange(num_sequences)
        index = _integers("index", index, (num_sequences,), x.device)
        _check_range("index", index, 0, None)
        if num_total is None:
            num_total = num_sequences
        if not isinstance(num_total, int):
            raise TypeError(f"num_total must be an int, got {type(num_total)}")
        if num_total <= index.max():
            raise ValueError(f"num_total must be greater than every index ({int(index.max())}), got {num_total}")

        values = (x, lengths, inputs, labels, mask, allowed, index, num_total)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_list(
        cls,
        arrays: Iterable[ArrayLike | Tensor],
        *,
        inputs: Iterable[ArrayLike | Tensor] | None = None,
        labels: Iterable[ArrayLike | Tensor | None] | None = None,
        mask: Iterable[ArrayLike | Tensor | None] | Literal["nan"] | None = None,
        allowed: Iterable[ArrayLike | Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Sequences":
        """Sequences from one array each: numpy arrays, tensors or nested lists.

        Args:
            arrays: N arrays (T_i,), (T_i, D) or (T_i, *event), NaN allowed where mask is False.
            inputs: N arrays (T_i, C).
            labels: N arrays (T_i,) of integers, -1 where unknown; None for a sequence without labels.
            mask: N arrays of bools, True where observed: (T_i,) for steps or (T_i, *event) for single entries; None
                for a sequence observed everywhere. "nan": every NaN is a missing entry.
            allowed: N arrays (T_i, K) of bools, True for the states that are possible at a step.
            dtype: of x (and of inputs, if floating). Default: int64 if all arrays hold integers or bools,
                else torch's default dtype. A floating dtype or torch.int64.

        Returns:
            Sequences with x of shape (N, max T_i, *event), on the device of the arrays.

        Raises:
            TypeError: the dtype of an argument is of the wrong kind.
            ValueError: no arrays, an empty sequence, features of different shapes, lengths that differ between
                arguments, or values that are not finite where observed.

        Example:
            >>> data = Sequences.from_list([[1.0, float("nan"), 3.0], [4.0]], mask=[[True, False, True], None])
            >>> data.x
            tensor([[1., 0., 3.],
                    [4., 0., 0.]])
            >>> data.lengths, data.num_observed
            (tensor([3, 1]), 3)
            >>> Sequences.from_list([[[1.0, float("nan")]]], mask="nan").mask
            tensor([[[ True, False]]])
            >>> Sequences.from_list([[[0.0, 1.0]], [[0.0]]])
            Traceback (most recent call last):
            ...
            ValueError: arrays[1] must have steps of shape (2,), like arrays[0], got (1,)
        """
        tensors = [_to_tensor(f"arrays[{i}]", array) for i, array in enumerate(arrays)]
        if not tensors:
            raise ValueError("arrays must hold at least one sequence, got none")
        lengths = [len(tensor) for tensor in tensors]
        if isinstance(mask, str):
            if mask != "nan":
                raise ValueError(f"mask must be arrays of bools, 'nan' or None, got {mask!r}")
            mask = [~tensor.isnan() for tensor in tensors]
            mask = None if all(seen.all() for seen in mask) else mask
        x = _pad("arrays", tensors)
        if dtype is None:
            dtype = torch.get_default_dtype() if x.is_floating_point() else torch.int64
        elif not dtype.is_floating_point and (dtype != torch.int64 or x.is_floating_point()):
            raise TypeError(f"dtype must be floating, or torch.int64 for arrays of integers, got {dtype}")

        def pad(name: str, items: Iterable[ArrayLike | Tensor | None] | None, default: int | bool | None = None):
            if items is None:
                return None
            items = list(items)
            if len(items) != len(lengths):
                raise ValueError(f"{name} must have one entry for each of {len(lengths)} sequences, got {len(items)}")
            tensors = []
            for i, (item, length) in enumerate(zip(items, lengths, strict=True)):
                if item is None and default is not None:
                    tensor = torch.full((length,), default, device=x.device)
                else:
                    tensor = _to_tensor(f"{name}[{i}]", item)
                if len(tensor) != length:
                    raise ValueError(f"{name}[{i}] must have {length} steps, like arrays[{i}], got {len(tensor)}")
                tensors.append(tensor)
            ranks = [tensor.ndim for tensor in tensors]
            if name == "mask" and min(ranks) < max(ranks):
                # Whole steps in some sequences, single entries in others.
                tensors = [tensor if tensor.ndim > 1 else _spread(tensor, x.shape[2:]) for tensor in tensors]
            return _pad(name, tensors)

        padded_inputs = pad("inputs", inputs)
        if padded_inputs is not None:
            padded_inputs = padded_inputs.to(dtype if dtype.is_floating_point else torch.get_default_dtype())
        return cls(
            x.to(dtype),
            torch.tensor(lengths),
            inputs=padded_inputs,
            labels=pad("labels", labels, default=-1),
            mask=pad("mask", mask, default=True),
            allowed=pad("allowed", allowed),
        )

    @property
    def num_steps(self) -> int:
        """Number of steps T of the padded tensor.

        >>> Sequences(torch.zeros(2, 5, 3)).num_steps
        5
        """
        return self.x.shape[1]

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one observation: () for (N, T), (D,) for (N, T, D).

        >>> Sequences(torch.zeros(2, 5, 3)).event_shape
        torch.Size([3])
        """
        return self.x.shape[2:]

    @property
    def valid(self) -> Tensor:
        """True at steps within the length, (N, T) bool.

        >>> Sequences(torch.zeros(2, 3), torch.tensor([3, 1])).valid
        tensor([[ True,  True,  True],
                [ True, False, False]])
        """
        return torch.arange(self.num_steps, device=self.x.device) < self.lengths[:, None]

    @property
    def observed(self) -> Tensor:
        """True at steps within the length of which at least one entry is observed, (N, T) bool.

        >>> Sequences(torch.zeros(1, 3), torch.tensor([2]), mask=torch.tensor([[False, True, True]])).observed
        tensor([[False,  True, False]])
        """
        return self.valid if self.mask is None else self.mask.flatten(2).any(-1) if self.mask.ndim > 2 else self.mask

    @property
    def entries(self) -> Tensor | None:
        """The mask of single entries, (N, T, *event) bool; None where only whole steps are missing, or none.

        >>> data = Sequences.from_list([[[0.0, float("nan")], [1.0, 2.0]]], mask="nan")
        >>> data.entries.shape, data[0].observed
        (torch.Size([1, 2, 2]), tensor([[True, True]]))
        """
        return self.mask if self.mask is not None and self.mask.ndim > 2 else None

    @property
    def num_observed(self) -> int:
        """Number of observed steps, over all sequences.

        >>> Sequences(torch.zeros(2, 3), torch.tensor([3, 1])).num_observed
        4
        """
        return int(self.observed.sum())

    def __len__(self) -> int:
        """Number of sequences N."""
        return len(self.x)

    def __getitem__(self, item: int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor) -> "Sequences":
        """A subset of the sequences, which keeps its place in the whole set and the number of padded steps.

        Args:
            item: an integer (one sequence, still with a batch axis), a slice, indices (M,) or a bool mask (N,).

        Raises:
            IndexError: an index is outside the set, or nothing is selected.
            TypeError: item is of another kind.

        Example:
            >>> data = Sequences(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
            >>> part = data[torch.tensor([True, False, True])]
            >>> part.x, part.index, part.num_total
            (tensor([[1., 2.],
                    [5., 6.]]), tensor([0, 2]), 3)
            >>> data[-1].x
            tensor([[5., 6.]])
        """
        num_sequences = len(self)
        if isinstance(item, slice):
            rows = torch.tensor(range(num_sequences)[item], dtype=torch.int64)
        else:
            rows = torch.as_tensor(item)
            if rows.ndim == 0 and rows.dtype != torch.bool:
                rows = rows[None]
            if rows.numel() == 0:
                rows = rows.long()  # torch reads an empty list as floats
        if rows.is_floating_point() or rows.is_complex():
            raise TypeError(f"item must be an integer, a slice, indices or a bool mask, got {_dtype_name(rows)}")
        if rows.ndim != 1 or (rows.dtype == torch.bool and len(rows) != num_sequences):
            raise IndexError(
                f"item must have shape (M,), or ({num_sequences},) if bool, got {_dtype_name(rows)} {tuple(rows.shape)}"
            )
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        if rows.numel() == 0:
            raise IndexError("item must select at least one sequence, got none")
        if rows.min() < -num_sequences or rows.max() >= num_sequences:
            raise IndexError(f"item must index {num_sequences} sequences, got {item}")
        return self._select(rows.long(), self.num_steps)

    def __iter__(self) -> Iterator["Sequences"]:
        """The sequences one by one, each as a set of one."""
        return (self[i] for i in range(len(self)))

    def trim(self) -> "Sequences":
        """The same sequences without the steps past the longest one.

        >>> Sequences(torch.zeros(2, 9), torch.tensor([3, 4])).trim().num_steps
        4
        """
        return self._replace({name: value[:, : self.lengths.max()] for name, value in self._time_tensors()})

    def as_whole(self) -> "Sequences":
        """The same sequences as a set of their own: index 0, ..., N - 1 and num_total N.

        >>> part = Sequences(torch.zeros(5, 2))[3:]
        >>> part.num_total, part.as_whole().num_total
        (5, 2)
        """
        return self._replace({"index": torch.arange(len(self), device=self.x.device), "num_total": len(self)})

    def batches(
        self, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> Iterator["Sequences"]:
        """Minibatches that together hold every sequence once, each trimmed to its longest sequence.

        Args:
            batch_size: sequences in a minibatch; the last one may be smaller.
            shuffle: in random order, drawn when this is called.
            generator: source of the random order. Default: torch's global one.

        Raises:
            ValueError: batch_size is less than 1.

        Example:
            >>> data = Sequences(torch.zeros(5, 7), torch.tensor([1, 2, 3, 7, 5]))
            >>> [tuple(batch.x.shape) for batch in data.batches(2)]
            [(2, 2), (2, 7), (1, 5)]
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shuffle:
            device = torch.device("cpu") if generator is None else generator.device
            order = torch.randperm(len(self), generator=generator, device=device)
        else:
            order = torch.arange(len(self))
        rows = order.to(self.x.device).split(batch_size)
        # Asked for all at once: on a GPU, each question waits for the device.
        longest = torch.stack([self.lengths[some].max() for some in rows]).tolist()
        return (self._select(some, steps) for some, steps in zip(rows, longest, strict=True))

    def split(self, fractions: Sequence[float], seed: int = 0) -> tuple["Sequences", ...]:
        """Random parts, each a set of its own (see :meth:`as_whole`) in the original order.

        Args:
            fractions: positive share of each part, of sum 1; sizes are rounded so that they add up to N.
            seed: of the random assignment.

        Raises:
            ValueError: fractions are not positive or do not sum to 1, or a part would be empty.

        Example:
            >>> train, test = Sequences(torch.zeros(10, 2)).split([0.8, 0.2], seed=1)
            >>> len(train), len(test), test.num_total
            (8, 2, 2)
        """
        if len(fractions) == 0 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be positive and sum to 1, got {fractions}")
        ends = [round(total * len(self)) for total in accumulate(fractions)]
        sizes = [end - start for start, end in pairwise([0, *ends])]
        if min(sizes) == 0:
            raise ValueError(f"fractions must leave each part at least one of {len(self)} sequences, got {fractions}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return tuple(self[rows.sort().values].as_whole() for rows in order.split(sizes))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Sequences":
        """The same sequences on another device, or with floating tensors (x, inputs) of another dtype.

        Args:
            device: for all tensors.
            dtype: floating; integer and bool tensors keep theirs.

        Raises:
            TypeError: dtype is not floating.
            ValueError: a value is too large for dtype.

        Example:
            >>> Sequences(torch.zeros(1, 2), labels=torch.tensor([[0, 1]])).to(dtype=torch.float64)
            Sequences(1 sequence of 2 steps, event_shape=(), float64, labels)
        """
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        moved: dict[str, object] = {}
        for name, value in [*self._time_tensors(), ("lengths", self.lengths), ("index", self.index)]:
            moved[name] = value.to(device)
            if dtype is not None and value.is_floating_point():
                moved[name] = cast = value.to(device, dtype)
                _check_finite(name, cast, f" as {dtype}")
        return self._replace(moved)

    def to_list(self) -> list[Tensor]:
        """The observations of each sequence without padding: N tensors (T_i, *event), the inverse of from_list.

        >>> Sequences.from_list([[1, 2, 3], [4]]).to_list()
        [tensor([1, 2, 3]), tensor([4])]
        """
        return [x[:length] for x, length in zip(self.x, self.lengths.tolist(), strict=True)]

    def __repr__(self) -> str:
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        sequences = "1 sequence" if len(self) == 1 else f"{len(self)} sequences"
        if self.num_total != len(self):
            sequences += f" out of {self.num_total}"
        steps = f"{longest} steps" if shortest == longest else f"{shortest} to {longest} steps"
        parts = [f"{sequences} of {steps}", f"event_shape={tuple(self.event_shape)}", _dtype_name(self.x)]
        if self.inputs is not None:
            parts.append(f"inputs={self.inputs.shape[-1]}")
        parts += [name for name in ("labels", "mask", "allowed") if getattr(self, name) is not None]
        return f"Sequences({', '.join(parts)})"

    def _time_tensors(self) -> list[tuple[str, Tensor]]:
        """Name and value of the tensors (N, T, ...) that are there."""
        names = ("x", "inputs", "labels", "mask", "allowed")
        pairs = [(name, getattr(self, name)) for name in names]
        return [(name, value) for name, value in pairs if value is not None]

    def _replace(self, changes: dict[str, object]) -> "Sequences":
        """A copy with some fields changed, without the checks: parts of checked data need none."""
        other = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(other, name, value)
        return other

    def _select(self, rows: Tensor, num_steps: int) -> "Sequences":
        """The sequences at rows (M,), cut to their first num_steps steps (at least the longest of them)."""
        rows = rows.to(self.x.device)
        changes: dict[str, object] = {name: value[:, :num_steps][rows] for name, value in self._time_tensors()}
        return self._replace({**changes, "lengths": self.lengths[rows], "index": self.index[rows]})


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (for arrays use Sequences.from_list), got {type(value)}")


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    _check_tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def _integers(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The value as int64 on the device, its shape and dtype checked."""
    _check_shape(name, value, shape)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {_dtype_name(value)}")
    return value.to(device, torch.int64)


def _check_range(name: str, value: Tensor, low: int, high: int | None) -> None:
    bad = value < low
    if high is not None:
        bad |= value > high
    if bad.any():
        where = bad.nonzero()[0].tolist()
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {bounds}, got {value[tuple(where)].item()} at {_place(where)}")


def _check_finite(name: str, value: Tensor, hint: str) -> None:
    if not value.is_floating_point():
        return
    # The extremes carry NaN and inf, and need no second tensor as large as the data.
    if torch.stack(torch.aminmax(value.detach())).isfinite().all():
        return
    where = (~value.isfinite()).nonzero()[0].tolist()
    raise ValueError(f"{name} must be finite, got {value[tuple(where)].item()} at {_place(where)}{hint}")


def _place(where: list[int]) -> str:
    """The first two axes of an index in words."""
    return ", ".join(f"{axis} {i}" for axis, i in zip(("sequence", "step"), where, strict=False))


def _fill(value: Tensor, where: Tensor, filler: int) -> Tensor:
    """The value (N, T, ...) with filler where the bool tensor is True, (N, T) or more; no copy if that is nowhere."""
    return value.masked_fill(_widen(where, value.ndim), filler) if where.any() else value


def _widen(value: Tensor, ndim: int) -> Tensor:
    """With dims of size 1 on the right, so that there are `ndim`."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def _spread(value: Tensor, event_shape: torch.Size) -> Tensor:
    """(T_i,) as (T_i, *event)."""
    return _widen(value, 1 + len(event_shape)).expand(*value.shape, *event_shape)


def _to_tensor(name: str, value: ArrayLike | Tensor | None) -> Tensor:
    """One sequence (T_i, ...) as a tensor, T_i >= 1."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be a rectangular array of numbers, got {type(value)}: {error}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {_dtype_name(tensor)}")
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have shape (T,) or (T, *event), got the single number {tensor.item()}")
    if len(tensor) == 0:
        raise ValueError(f"{name} must have at least one step, got shape {tuple(tensor.shape)}")
    return tensor


def _pad(name: str, tensors: list[Tensor]) -> Tensor:
    """Tensors (T_i, *event) of one event shape as (N, max T_i, *event), in the dtype that holds all of them."""
    for i, tensor in enumerate(tensors):
        if tensor.shape[1:] != tensors[0].shape[1:]:
            raise ValueError(
                f"{name}[{i}] must have steps of shape {tuple(tensors[0].shape[1:])}, like {name}[0], "
                f"got {tuple(tensor.shape[1:])}"
            )
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return pad_sequence([tensor.to(dtype) for tensor in tensors], batch_first=True)
