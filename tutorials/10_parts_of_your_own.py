# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. Parts of your own, and how to test them
#
# Emissions, transitions and guides are modules with a small contract. This tutorial writes an emission that the library
# does not have (Laplace, for data with outliers), a transition with structure (a ring that turns one way or the other),
# and a guide for a latent beside the states, and holds each of them to the oracle that lists all paths.

# %%
import math
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyrohmm
from pyrohmm import data, models, nn, testing

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests

# %% [markdown]
# ## An emission
#
# The contract: `num_states`, `event_shape` (of one observation), `order` (how many earlier observations it wants to
# see, here none), and `forward(state, inputs, previous)`, which returns a Pyro distribution for states of any shape.
# Parameters live in the module, mathematics in the distribution. `relabel` is optional; with it the states can be put
# in order.


# %%
class LaplaceEmission(nn.Part):
    """x | z = k ~ Laplace(loc_k, scale_k), for each of D numbers."""

    order = 0

    def __init__(self, num_states, dim):
        super().__init__()
        self.num_states, self.event_shape = num_states, torch.Size([dim])
        self.loc = torch.nn.Parameter(torch.randn(num_states, dim))
        self.log_scale = torch.nn.Parameter(torch.zeros(num_states, dim))

    def forward(self, state, inputs=None, previous=None):
        return dist.Laplace(self.loc[state], self.log_scale.exp()[state]).to_event(1)

    def relabel(self, permutation):
        with torch.no_grad():
            self.loc.copy_(self.loc[permutation])
            self.log_scale.copy_(self.log_scale[permutation])


# %% [markdown]
# ## A transition
#
# K places on a ring; at each step one stays, goes on, or goes back. Three numbers for any K. A transition returns the
# logits of the next state for states of any shape, `forward(state, inputs)`, and the whole matrix of log-probabilities
# as `matrix(inputs)`, which is what fits by EM ask for.


# %%
class RingTransition(nn.Part):
    """p(z' | z) depends on z' - z only: 0, +1 or -1, on a ring."""

    def __init__(self, num_states):
        super().__init__()
        self.num_states = num_states
        self.moves = torch.nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))  # stay, forward, back

    def matrix(self, inputs=None):
        there = torch.arange(self.num_states)
        away = (there - there.unsqueeze(-1)) % self.num_states
        steps = torch.tensor([0, 1, self.num_states - 1])
        hit = (away.unsqueeze(-1) == steps).to(self.moves.dtype)
        logits = hit @ self.moves
        return logits.masked_fill(hit.sum(-1) == 0, -math.inf).log_softmax(-1)

    def forward(self, state, inputs=None):
        return self.matrix()[state]


# %% [markdown]
# ## Against the oracle
#
# `pyrohmm.testing.enumeration` computes everything from the list of all K^T paths. If the program with your parts
# agrees with it in value and gradient, for ragged sequences, and with padding that is NaN, then your parts keep the
# contract. In your own project this would be a test.


# %%
def check(model, observations, lengths):
    """The likelihood and its gradient, by the program and by the list of all paths."""
    batch = data.Sequences(observations, lengths)
    by_program = model.log_prob(batch)
    states = torch.arange(model.num_states)
    by_paths = []
    for x, length in zip(observations, lengths.tolist(), strict=True):
        logits = model.emission(states).log_prob(x[:length].unsqueeze(-2))  # (T, K)
        by_paths.append(
            testing.enumeration.log_partition(model.initial().log_softmax(-1), model.transition(states), logits)
        )
    by_paths = torch.stack(by_paths)
    testing.assert_close_to_oracle(by_program, by_paths)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(by_program.sum(), parameters), torch.autograd.grad(by_paths.sum(), parameters), strict=True
    ):
        testing.assert_close_to_oracle(ours, theirs)
    return by_program.detach()


K, D = 4, 2
model = models.HMM(LaplaceEmission(K, D), transition=RingTransition(K)).double()
lengths = torch.tensor([6, 1, 4])
observations = torch.randn(3, 6, D, dtype=torch.float64)
observations[torch.arange(6) >= lengths.unsqueeze(-1)] = torch.nan
print(check(model, observations, lengths))

# %% [markdown]
# The same for the two forms of the loop: the collapsed program and the plain sequential one, for Pyro's own
# enumeration.

# %%
batch = data.Sequences(observations, lengths)
collapsed = pyro.infer.Trace_ELBO().loss(model, model.guide, batch)
sequential = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2).loss(
    lambda batch: model(batch, vectorized=False), model.guide, batch
)
print(collapsed, sequential)

# %% [markdown]
# ## Does it learn?
#
# The second test is truth that was simulated. One number in twenty is an outlier that a Gaussian emission has to pay
# for.

# %%
truth = models.HMM(LaplaceEmission(K, D), transition=RingTransition(K))
with torch.no_grad():
    truth.emission.loc.copy_(torch.tensor([[0.0, 3.0], [3.0, 0.0], [0.0, -3.0], [-3.0, 0.0]]))
    truth.emission.log_scale.fill_(math.log(0.5))
    truth.transition.moves.copy_(torch.tensor([0.85, 0.12, 0.03]).log())
train = truth.simulate(10 if SMOKE else 40, 100, seed=1)
outlier = torch.rand(train.x.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.05
noisy = data.Sequences(torch.where(outlier.unsqueeze(-1), train.x * 4, train.x))

# %%
fitted = models.HMM(LaplaceEmission(K, D), transition=RingTransition(K))
with torch.no_grad():
    fitted.emission.loc.copy_(truth.emission.loc + 0.7 * torch.randn(K, D))
history = pyrohmm.fit_svi(fitted, noisy, steps=20 if SMOKE else 300, learning_rate=0.05, seed=0, progress=False)

gaussian = models.HMM(nn.GaussianEmission(K, D))
pyrohmm.fit_em(gaussian, noisy, restarts=5, initialization="kmeans", seed=0, progress=False)


def accuracy_of(model):
    """How many steps are decoded right, in the order of the states that agrees best with the true ones."""
    with torch.no_grad():
        posterior = model.posterior(noisy)
    order = models.match_states(models.overlap(posterior, train.labels))
    return (order.argsort()[posterior.viterbi().states] == train.labels).float().mean().item()


accuracy = {"Laplace on a ring": accuracy_of(fitted), "Gaussian, any transitions": accuracy_of(gaussian)}
moves = fitted.transition.matrix().exp()[0].detach()
print(accuracy)
print("stay, forward, back:", moves[[0, 1, K - 1]].numpy().round(3))

pyrohmm.checks.plot_transitions(fitted)
plt.show()

# %% [markdown]
# ## A latent beside the states, and its guide
#
# Say that each sequence has its own unknown offset. It is an ordinary latent site of the program, in the plate of the
# sequences. A guide proposes it; here a network of the sequence's median, so that a new sequence needs no new fit.
# Given the offset the states are summed out exactly.

# %%
offsets = 3 * torch.randn(len(train), 1, generator=torch.Generator().manual_seed(3))
shifted = data.Sequences(train.x + offsets.unsqueeze(-1))


with torch.no_grad():  # known here; they could as well be learned
    initial, transition = truth.initial(), truth.transition.matrix()
    loc, scale = truth.emission.loc.clone(), truth.emission.log_scale.exp()


def model_with_offsets(batch):
    with pyro.plate("sequences", batch.num_total, subsample=batch.index, dim=-2):
        offset = pyro.sample("offset", dist.Normal(0.0, torch.tensor(3.0)))  # (N, 1)
        z = None
        for t in pyrohmm.markov("time", batch.num_steps, dim=-1, lengths=batch.lengths):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Laplace(loc[z] + offset.unsqueeze(-1), scale[z]).to_event(1), obs=batch.x[:, t])


class OffsetGuide(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(D, 2)

    def law(self, batch):
        loc, log_scale = self.net(batch.x.median(1).values).unsqueeze(1).unbind(-1)
        return dist.Normal(loc, log_scale.exp())

    def forward(self, batch):
        with pyro.plate("sequences", batch.num_total, subsample=batch.index, dim=-2):
            pyro.sample("offset", self.law(batch))


guide = OffsetGuide()
pyrohmm.fit_svi(
    model_with_offsets, shifted, guide, steps=20 if SMOKE else 600, learning_rate=0.02, seed=0, progress=False
)
with torch.no_grad():
    guessed = guide.law(shifted).loc
correlation = torch.corrcoef(torch.cat([guessed, offsets], 1).T)[0, 1].item()
print(f"correlation of the guide's offsets with the true ones: {correlation:.3f}")

# %% [markdown]
# ## What was recovered

# %%
if not SMOKE:
    assert accuracy["Laplace on a ring"] > 0.93
    assert abs(moves[0] - 0.85) < 0.03
    assert moves[1] > moves[K - 1]
    assert moves[2] == 0
    assert correlation > 0.95
