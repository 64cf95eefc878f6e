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
# # 2. Your first hidden Markov model as a Pyro program
#
# In Pyro a model is a function that samples. A hidden Markov model is a function with a loop over time. This tutorial
# writes one, trains it, decodes it, gives it priors, lets some of the data be missing, and checks it by simulation.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median

import pyrohmm

SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
pyro.set_rng_seed(0)

# %% [markdown]
# ## Data
#
# Forty sequences of different lengths, of one sensor, made here from three regimes that we then pretend not to know: a
# level for each, and changes now and then. Sequences are padded to one tensor (B, T); `lengths` says how much of each
# is data. What stands beyond is never read, so NaN will do.

# %%
K, B, T = 3, 40, 60
true_loc = torch.tensor([-2.0, 0.0, 3.0])
true_scale = torch.tensor([0.7, 0.5, 1.0])
true_transition = torch.tensor([[0.90, 0.10, 0.00], [0.05, 0.90, 0.05], [0.00, 0.10, 0.90]])
lengths = torch.randint(20, T + 1, (B,))

source = pyrohmm.HiddenMarkovModel(
    pyrohmm.MarkovChain(torch.zeros(K), true_transition.log(), lengths=lengths),
    dist.Normal(true_loc, true_scale),
)
states, x = source.sample_with_states()
beyond = torch.arange(x.shape[1]) >= lengths.unsqueeze(-1)
x = x.masked_fill(beyond, torch.nan)
T = x.shape[1]
print(x.shape, lengths[:5])

# %% [markdown]
# ## The model
#
# `pyrohmm.markov` is the loop over time. Read the body as one step: at the first one there is no state yet (`z is
# None`), at all others the state depends on the one before. `t` is a slice of the time axis, so `x[:, t]` keeps that
# axis. The plate says that sequences are independent; it lies to the left of time.


# %%
def model(x, lengths):
    initial = pyro.param("initial", torch.zeros(K))
    transition = pyro.param("transition", 2.0 * torch.eye(K))  # logits: states last, at the start
    loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
    scale = pyro.param("scale", torch.ones(K), constraint=dist.constraints.positive)
    with pyro.plate("sequences", x.shape[0], dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x[:, t])


# %% [markdown]
# ## Training
#
# The states are summed out inside of the loop, so the program has no latent site left and the guide is empty: SVI is
# then maximum likelihood by exact gradients.

# %%
svi = SVI(model, lambda *args: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
losses = [svi.step(x, lengths) / lengths.sum().item() for _ in range(5 if SMOKE else 300)]

figure, axes = plt.subplots(figsize=(8, 2.5))
axes.plot(losses)
axes.set(xlabel="step", ylabel="nats per observation")
plt.show()

print("loc  ", pyro.param("loc").detach().numpy().round(2))
print("scale", pyro.param("scale").detach().numpy().round(2))
print(pyro.param("transition").softmax(-1).detach().numpy().round(2))

# %% [markdown]
# ## Decoding
#
# `posterior` runs the same program and returns the law of the state paths given everything else, one for each loop, as
# a distribution: the most probable path, the probabilities of the states at each step, draws of whole paths.

# %%
with torch.no_grad():
    path = pyrohmm.posterior(model)(x, lengths)["time"]
decoded = path.viterbi().states  # -1 past the length
accuracy = (decoded == states)[~beyond].float().mean().item()
print(f"steps decoded right: {accuracy:.1%}")

pyrohmm.checks.plot_series(x, path, sequence=int(lengths.argmax()))
plt.show()

# %% [markdown]
# ## Priors and missing steps
#
# The program with priors in place of parameters, and a mask for steps at which the sensor was off. An autoguide makes
# the approximate posterior of the parameters; the states stay summed out, so the guide need not know them. Nothing in
# the likelihood says which state is which; the prior of the levels does, so we start the guide at the prior's medians.

# %%
observed = torch.rand(B, T) > 0.2
holes = x.masked_fill(~observed, torch.nan)


def bayesian(x, lengths, observed, num_sequences=None):
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("states", K, dim=-1):
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(K) + 5 * torch.eye(K)))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    B = num_sequences if x is None else x.shape[0]
    with pyro.plate("sequences", B, dim=-2):
        z = None
        for t in pyrohmm.markov("time", T, dim=-1, lengths=lengths):
            z = pyro.sample("z", dist.Categorical(initial if z is None else transition[z]))
            with pyro.poutine.mask(mask=True if observed is None else observed[:, t]):
                pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=None if x is None else x[:, t])


pyro.clear_param_store()
guide = AutoNormal(bayesian, init_loc_fn=init_to_median, init_scale=0.05)
svi = SVI(bayesian, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
for _ in range(5 if SMOKE else 400):
    svi.step(holes, lengths, observed)
low, high = (guide.quantiles([0.05, 0.95])["loc"]).unbind(0)
for k in range(K):
    print(f"loc of state {k}: 90% within {low[k]:.2f} .. {high[k]:.2f}, true {true_loc[k]:.2f}")

# %% [markdown]
# What was the state while the sensor was off? The chain carries what it knows over the gap.

# %%
with torch.no_grad():
    gaps = pyrohmm.posterior(bayesian, guide)(holes, lengths, observed)["time"]
unseen = ~observed & ~beyond
accuracy_unseen = (gaps.viterbi().states == states)[unseen].float().mean().item()
print(f"steps decoded right where nothing was measured: {accuracy_unseen:.1%}")

# %% [markdown]
# ## Simulation
#
# With nothing observed the same loop simulates; "z" and "x" are then sites of the trace, over all of time. Pyro's
# `Predictive` draws from the posterior predictive law with it. Does the model produce the spread that the data have?

# %%
predictive = Predictive(bayesian, guide=guide, num_samples=5 if SMOKE else 100, return_sites=("x", "z"))
drawn = predictive(None, None, None, num_sequences=10)["x"]
figure, axes = plt.subplots(figsize=(8, 2.5))
axes.hist(x[~beyond].numpy(), bins=60, density=True, alpha=0.5, label="data")
axes.hist(drawn.flatten().numpy(), bins=60, density=True, histtype="step", color="black", label="simulated")
axes.set(xlabel="x", ylabel="density")
axes.legend()
plt.show()

# %% [markdown]
# ## What was recovered

# %%
if not SMOKE:
    assert accuracy > 0.93
    assert accuracy_unseen > 0.7
    assert ((low - 0.1 < true_loc) & (true_loc < high + 0.1)).all()
    assert abs(drawn.std() - x[~beyond].std()) < 0.3
