"""`fit_em` with every emission that has an M-step: priors aside, the likelihood never falls."""

from itertools import pairwise

import pytest
import torch

import pyrohmm
from pyrohmm.data import Sequences
from tests.models.cases import CASES, C, make

CLOSED = [name for name in CASES if make(name)[0].emission.closed_form and name != "labels"]


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("name", CLOSED)
def test_single_entries_missing(name, restarts):
    model, _ = make(name)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 20, C, generator=generator, dtype=torch.float64)
    inputs[..., -1].round_()  # a phase, for a part that reads one
    data = model.simulate(6, 20, inputs=inputs, seed=0)
    mask = torch.rand(data.x.shape, generator=generator) < 0.8
    holes = Sequences(torch.where(mask, data.x, 0), inputs=inputs, mask=mask)
    fitted, _ = make(name, seed=1)
    before = -fitted.log_prob(holes).sum().item()
    history = pyrohmm.fit_em(fitted, holes, steps=8, restarts=restarts, seed=0, progress=False)
    assert all(new <= old + 1e-9 * abs(old) for old, new in pairwise(history.loss))
    assert -fitted.log_prob(holes).sum().item() < before
