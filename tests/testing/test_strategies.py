import subprocess
import sys

import pytest
import torch
from hypothesis import find, given, settings

from pyrohmm.testing.strategies import chains

examples = settings(deadline=None, max_examples=50, derandomize=True)


@examples
@given(chains(max_states=2, max_steps=3, max_batch=2, dtype=torch.float32))
def test_bounds_are_kept(chain):
    *batch, num_steps, num_states = chain.observation_logits.shape
    assert num_states <= 2
    assert num_steps <= 3
    assert all(n <= 2 for n in batch)
    assert {logits.dtype for logits in chain.logits} == {torch.float32}


@pytest.mark.parametrize(
    "kind",
    [
        lambda chain: chain.observation_logits.shape[-1] == 1 and chain.observation_logits.shape[-2] > 1,
        lambda chain: chain.observation_logits.shape[-2] == 1 and chain.observation_logits.shape[-1] > 1,
        lambda chain: chain.lengths is not None and (chain.lengths == 0).any() and (chain.lengths > 0).any(),
        lambda chain: chain.transition_logits.dim() > 3 and chain.transition_logits.shape[-3] > 1,
        lambda chain: (chain.transition_logits == -torch.inf).any(),
        lambda chain: (chain.observation_logits == -torch.inf).all(-1).any(),
        lambda chain: chain.observation_logits.isnan().any(),
        lambda chain: not chain.observation_logits.is_contiguous(),
        lambda chain: chain.initial_logits.shape[:-1] != chain.observation_logits.shape[:-2],
    ],
)
def test_awkward_chains_are_found(kind):
    assert kind(find(chains(), lambda chain: bool(kind(chain)), settings=settings(database=None, derandomize=True)))


def test_only_strategies_needs_hypothesis():
    code = "import sys, pyrohmm.testing; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
