"""With validation off, no step of a fit waits for a GPU, nor do decoding and sampling.

Without a GPU, what would wait is seen in the operations that torch is asked for, as in tests/ops. With one,
`pytest tests/infer/test_synchronisation.py --device cuda` lets torch itself watch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample

from pyrohmm.data import Sequences
from pyrohmm.distributions import padding, statewise
from pyrohmm.infer import fit_svi, svi
from pyrohmm.infer.minibatches import Minibatches
from pyrohmm.models import HMM, blank
from pyrohmm.ops import chain
from pyrohmm.ops.forward_backward import api
from pyrohmm.program import loop
from tests.infer.test_svi import make_data, make_model, noisy_model
from tests.models.cases import make as make_case
from tests.ops.test_synchronisation import Watch, unwatched

CASES = ["bits", "guided", "categorical", "gaussian", "poisson", "labels", "embedded", "inputs", "autoregressive"]


def make(name: str) -> tuple[HMM, Sequences, torch.nn.Module | None]:
    """A model, data of different lengths, and a guide."""
    if name == "bits":
        return make_model(), make_data(), None
    if name == "guided":
        model, guide = noisy_model()
        return model, make_data(), guide
    model, data = make_case(name)
    return model.float(), data.to(dtype=torch.float32), None


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Nothing is asked that is asked only because on the CPU it costs nothing."""
    monkeypatch.setattr(svi, "_read_every", lambda device: 20)
    for module in (padding, statewise, blank):
        monkeypatch.setattr(module, "waits", lambda tensor: True)
    # Lengths on the CPU, and only there, are looked at in any case.
    for module, name in (
        (chain, "check_lengths"),
        (loop, "check_range"),
        (chain, "clear_padding"),
        (api, "clear_padding"),
    ):
        monkeypatch.setattr(module, name, unwatched(getattr(module, name)))
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_not_wait(name, as_on_a_gpu, monkeypatch):
    model, data, guide = make(name)
    real_step, watches = svi._Fit.step, []

    def step(fit):
        watches.append(Watch())
        with watches[-1]:
            real_step(fit)

    monkeypatch.setattr(svi._Fit, "step", step)
    monkeypatch.setattr(Minibatches, "_begin_epoch", unwatched(Minibatches._begin_epoch))
    options = {"num_particles": 2, "vectorize_particles": True} if name == "guided" else {}
    history = fit_svi(
        model, data, guide, steps=6, batch_size=3, schedule="cosine", annealing=4, progress=False, **options
    )
    assert history.num_steps == len(watches) == 6
    assert not any(watch.waited for watch in watches)


@pytest.mark.parametrize("name", CASES)
def test_decoding_sampling_and_scoring_do_not_wait(name, as_on_a_gpu):
    model, data, guide = make(name)
    model.log_prob(data, guide)  # a guide looks at the program when it is first run
    with Watch() as watch:
        chain = model.posterior(data, guide)
        chain.viterbi()
        chain.sample((2,))
        model.log_prob(data, guide).sum().backward()
    assert not watch.waited


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name, request, monkeypatch):
    if request.config.getoption("--device") == "cpu":
        pytest.skip("needs --device cuda: without, Triton's kernels are interpreted on the CPU")
    model, data, guide = make(name)
    model, data = model.to("cuda"), data.to("cuda")
    if guide is not None:  # a prior does not move with its module
        model.transition.logits = PyroSample(dist.Normal(torch.zeros(2, 2, device="cuda"), 1.0).to_event(2))
    real_step, real_epoch = svi._Fit.step, Minibatches._begin_epoch

    def step(fit):
        # The first steps compile kernels.
        with sync_debug("error" if fit.num_steps > 2 else "default"):
            real_step(fit)

    def begin_epoch(batches, position):
        with sync_debug("default"):
            real_epoch(batches, position)

    monkeypatch.setattr(svi._Fit, "step", step)
    monkeypatch.setattr(Minibatches, "_begin_epoch", begin_epoch)
    with pyro.validation_enabled(False):
        history = fit_svi(model, data, guide, steps=12, batch_size=3, schedule="cosine", progress=False)
        assert history.num_steps == 12
        for mode in ("default", "error"):
            with sync_debug(mode):
                chain = model.posterior(data, guide)
                chain.viterbi()
                chain.sample((2,))
                model.log_prob(data, guide).sum().backward()
