import pyro
import torch

from benchmarks.problem import check_agreement
from benchmarks.svi import Size, prepare_steps, prepare_unread_steps


def test_every_way_gives_the_same_loss_at_every_step() -> None:
    jobs = {name: job for name, job in prepare_steps(Size(3, 4, 5, 2)).items() if job}
    with pyro.get_param_store().scope():
        first = {name: job.read(job.run()) for name, job in jobs.items()}
        again = {name: job.read(job.run()) for name, job in jobs.items()}
    assert {"pyrohmm loop", "pyrohmm models.HMM", "TraceEnum_ELBO", "DiscreteHMM"} <= jobs.keys()
    for name in jobs:
        check_agreement(first["TraceEnum_ELBO"], first[name], name, tolerance=1e-5)
        check_agreement(first[name], again[name], name, tolerance=1e-6)
    assert torch.isfinite(first["TraceEnum_ELBO"]["loss"])


def test_steps_whose_loss_nobody_reads_are_the_same() -> None:
    size = Size(3, 4, 5, 2)
    with pyro.get_param_store().scope():
        expected = prepare_steps(size)["pyrohmm loop"]
        loss = expected.read(expected.run())["loss"]
    for step in prepare_unread_steps(size).values():
        with pyro.get_param_store().scope():
            torch.testing.assert_close(step(), loss)
            torch.testing.assert_close(step(), loss)
