"""The plain form of the loop: names, masks, subsampling."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyrohmm


def trace_of(model):
    return poutine.trace(model).get_trace()


def test_sites_are_named_by_step_and_marked_for_enumeration():
    def model():
        for t in pyrohmm.markov("time", 3, vectorized=False):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3)[t])

    nodes = trace_of(model).nodes
    assert [name for name in nodes if name[0] in "zx"] == ["z_0", "x_0", "z_1", "x_1", "z_2", "x_2"]
    assert nodes["z_1"]["infer"]["enumerate"] == "parallel"
    assert "enumerate" not in nodes["x_1"]["infer"]


def test_steps_past_the_length_do_not_count():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, torch.nan]])

    def model():
        with pyro.plate("sequences", 2, dim=-2):
            for t in pyrohmm.markov("time", 3, dim=-1, lengths=torch.tensor([3, 1]), vectorized=False):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, t])

    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor([1.0, 2.0, 3.0, 1.0])).sum()
    torch.testing.assert_close(trace_of(model).log_prob_sum(), expected)


def test_a_subsampled_plate_in_the_body_keeps_its_indices():
    drawn = []

    def model():
        for _ in pyrohmm.markov("time", 4, dim=-2, vectorized=False):
            with pyro.plate("tones", 100, subsample_size=3, dim=-1) as index:
                drawn.append(index.tolist())
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

    trace_of(model)
    assert len(drawn) == 4 and all(index == drawn[0] for index in drawn)
