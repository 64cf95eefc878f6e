"""Hypothesis strategies. The only module here that needs hypothesis, so import it by name."""

import torch
from hypothesis import strategies as st

from pyrohmm.testing.chains import Chain, random_chain


def chains(
    *, max_states: int = 3, max_steps: int = 5, max_batch: int = 3, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[Chain]:
    """Chains of every awkward kind that `random_chain` knows, small enough for the enumeration oracle.

    One state, one step, length 0, -inf potentials and impossible sequences, either form of transitions, batch
    dimensions that broadcast, strided memory, NaN in the padding. They shrink to one state, one step, no batch.

    >>> from hypothesis import find
    >>> tuple(find(chains(), lambda chain: chain.lengths is not None).observation_logits.shape)
    (1, 1)
    """
    return st.builds(
        random_chain,
        num_states=st.integers(1, max_states),
        num_steps=st.integers(1, max_steps),
        batch_shape=st.lists(st.integers(1, max_batch), max_size=2),
        transitions=st.sampled_from(["shared", "constant", "each"]),
        impossible=st.sampled_from([0.0, 0.1, 0.4]),
        lengths=st.sampled_from([None, "ragged"]),
        scale=st.sampled_from([1.0, 0.0, 10.0]),
        broadcast=st.booleans(),
        contiguous=st.booleans().map(lambda scattered: not scattered),
        poison=st.booleans(),
        dtype=st.just(dtype),
        seed=st.integers(0, 2**16),
    )
