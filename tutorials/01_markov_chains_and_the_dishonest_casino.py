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
# # 1. Markov chains and the dishonest casino
#
# A Markov chain moves between states, and where it goes next depends only on where it is. A hidden Markov model is a
# chain that nobody sees, but for what it emits. This first tutorial goes from one to the other, by hand, and solves the
# three classical problems: how probable are the observations, which states made them, and what are the parameters?

# %%
import os

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch

import pyrohmm
from pyrohmm import data, models, nn

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=pyrohmm.checks.state_colours(8))  # for the colour-blind too

# %% [markdown]
# ## A random walk
#
# Five places in a row. At each step the walker goes left or right with equal probability, and stays where the wall is.
# Row i of the transition matrix holds the probabilities of the next place, given place i. The library takes
# log-probabilities; an edge that does not exist has probability 0, log-probability -inf.

# %%
walk = torch.diag(torch.full((4,), 0.5), 1) + torch.diag(torch.full((4,), 0.5), -1)
walk[0, 0] = walk[4, 4] = 0.5
start = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])  # always on the left

walker = pyrohmm.MarkovChain(start.log(), walk.log(), num_steps=80)
paths = walker.sample((3,))

figure, axes = plt.subplots(figsize=(8, 2.5))
axes.step(range(80), paths.T + torch.tensor([-0.1, 0.0, 0.1]), linewidth=1)
axes.set(xlabel="step", ylabel="place", title="three walks")
plt.show()

# %% [markdown]
# Where is the walker after n steps? The rows of the matrix power $A^n$ say so. The longer one waits, the less the start
# matters: the rows become equal to the **stationary distribution** $\pi = \pi A$. Here all five places are equally
# probable in the long run.

# %%
for n in (1, 5, 50):
    print(n, walker.power(n)[0].numpy().round(3))
print("stationary", walker.stationary_distribution().numpy().round(3))

# %% [markdown]
# The probability of a path is the product of what was drawn on the way, and `log_prob` is its logarithm.

# %%
path = torch.tensor([0, 1, 2, 1, 0])
short = pyrohmm.MarkovChain(start.log(), walk.log(), num_steps=5)
print(short.log_prob(path).exp(), 0.5**4)

# %% [markdown]
# ## The dishonest casino
#
# A croupier has two dice, a fair one and one that shows a six half of the time. He changes the die seldom. We see the
# rolls, not the die (Durbin, Eddy, Krogh and Mitchison 1998, chapter 3).

# %%
fair = torch.full((6,), 1 / 6)
loaded = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
change = torch.tensor([[0.95, 0.05], [0.10, 0.90]])

chain = pyrohmm.MarkovChain(torch.tensor([0.5, 0.5]).log(), change.log(), num_steps=300)
casino = pyrohmm.HiddenMarkovModel(chain, dist.Categorical(torch.stack([fair, loaded])))

truth, rolls = casino.sample_with_states()
print((rolls[:30] + 1).tolist())

# %% [markdown]
# ### First problem: how probable are these rolls?
#
# There are $2^{300}$ ways in which the dice may have been changed. Their sum takes 300 steps: after each roll it is
# enough to know the sum over all pasts that end in each state. That is the forward algorithm, `log_prob`.
#
# Against it, a croupier who never cheats:

# %%
honest = dist.Categorical(fair).log_prob(rolls).sum()
print(f"dishonest casino {casino.log_prob(rolls):.2f} nats, honest one {honest:.2f} nats")

# %% [markdown]
# ### Second problem: which die was it?
#
# Two answers. The **posterior probability** of the loaded die at each roll, given all rolls; and the most probable
# **path** as a whole, by Viterbi's algorithm. `posterior` returns a distribution over paths which knows both. The
# filter knows only the rolls so far, as somebody at the table would.

# %%
posterior = casino.posterior(rolls)
smoothed = posterior.marginals[:, 1]
filtered = casino.filter(rolls).log_probs[:, 1].exp()
decoded = posterior.viterbi().states

pyrohmm.checks.plot_decoding(posterior, truth, states=[1], state_names=["fair", "loaded"])
plt.show()

accuracy = {
    "all rolls known": ((smoothed > 0.5) == truth).float().mean(),
    "rolls so far": ((filtered > 0.5) == truth).float().mean(),
    "Viterbi path": (decoded == truth).float().mean(),
}
print({name: round(value.item(), 3) for name, value in accuracy.items()})

# %% [markdown]
# ### Third problem: what are the dice?
#
# Now forget the parameters and learn them from rolls of many evenings. Baum-Welch, EM for hidden Markov models,
# alternates between the posterior of the states under the present parameters and the parameters that fit these expected
# states best. The likelihood never falls; but it has several maxima, so we start ten times and keep the best.

# %%
evenings = casino.expand((20 if SMOKE else 100,)).sample()
train = data.Sequences(evenings)
model = models.HMM(nn.CategoricalEmission(2, 6))
history = pyrohmm.fit_em(model, train, steps=20 if SMOKE else 200, restarts=10, seed=0, progress=False)

found = model.emission.logits.softmax(-1).detach()
cheat = int(found[:, 5].argmax())  # the states come in any order
model.relabel([1 - cheat, cheat])
found = model.emission.logits.softmax(-1).detach()
print("fair  ", found[0].numpy().round(3))
print("loaded", found[1].numpy().round(3))
print("changes\n", model.transition.matrix().exp().detach().numpy().round(3))

# %%
figure, axes = plt.subplots(figsize=(8, 2.5))
axes.plot(history.step, history.loss)
axes.set(xlabel="step of EM", ylabel="-log p (nats per roll)", title="the likelihood never falls")
plt.show()

# %% [markdown]
# ## What was recovered

# %%
if not SMOKE:
    assert accuracy["all rolls known"] > 0.7
    assert accuracy["all rolls known"] >= accuracy["rolls so far"] - 0.02
    assert casino.log_prob(rolls) > honest
    assert (found - torch.stack([fair, loaded])).abs().max() < 0.03
    assert (model.transition.matrix().exp() - change).abs().max() < 0.03
    assert all(after <= before + 1e-6 for before, after in zip(history.loss, history.loss[1:], strict=False))
