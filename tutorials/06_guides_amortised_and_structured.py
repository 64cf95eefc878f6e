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
# # 6. Guides: amortised and structured
#
# While the only latent site of a model is its chain of states, inference is exact and a guide has nothing to do. Guides
# begin where something else is unknown. This tutorial makes two of them. First a chain as a guide: for the states
# themselves, in a case where the right answer is known, to see what a guide loses. Then a guide for what is really
# needed, a latent vector for each sequence, with the states summed out exactly given it.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyrohmm
from pyrohmm import data, infer, models, nn

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=pyrohmm.checks.state_colours(8))  # for the colour-blind too

# %% [markdown]
# ## What a guide loses
#
# Two states, noisy observations, everything known. So the posterior of the paths is known, and log p(x) too.

# %%
N, T = 40, 20
initial = torch.tensor([0.5, 0.5]).log()
transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
loc = torch.tensor([-1.0, 1.0])

prior = pyrohmm.MarkovChain(initial, transition, num_steps=T)
hmm = pyrohmm.HiddenMarkovModel(prior, dist.Normal(loc, 1.0))
x = hmm.expand((N,)).sample()
observed = data.Sequences(x)
exact = hmm.log_prob(x).sum().item()


# %% [markdown]
# The same as a program, with the path as a latent **site**. It is the last dimension of `z`, and the plate of the steps
# puts it where the observations have theirs.


# %%
def model(batch):
    with pyro.plate("sequences", batch.num_total, subsample=batch.index, dim=-2):
        z = pyro.sample("z", prior)[..., 0, :]
        with pyro.plate("time", batch.num_steps, dim=-1):
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=batch.x)


# %% [markdown]
# Three guides. They all are Markov chains, made from potentials that are not normalised:
#
# - **mean field**: steps independent of each other, each with logits of its own;
# - **free chain**: logits of each step of each sequence, and transitions: as many numbers as there is data, and none of
#   them helps with a new sequence;
# - **amortised chain**: a network reads the sequence and makes the logits. `nn.ChainEncoder` puts the transitions to
#   the features of an encoder, `models.ChainGuide` makes a guide of both.
#
# `infer.PathELBO` does not draw paths. The KL divergence of two chains and the expected log-probability of the
# observations are sums over steps, so the bound and its gradient are exact.


# %%
class FreeGuide(pyro.nn.PyroModule):
    """Potentials that are parameters, one for each step and state."""

    def __init__(self, structured):
        super().__init__()
        self.unary = torch.nn.Parameter(torch.zeros(N, 1, T, 2))
        self.transition = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=structured)

    def forward(self, batch):
        chain = pyrohmm.MarkovChain.from_potentials(torch.zeros(2), self.transition, self.unary[batch.index])
        with pyro.plate("sequences", batch.num_total, subsample=batch.index, dim=-2):
            pyro.sample("z", chain)


guides = {
    "mean field": (FreeGuide(structured=False), 800, 0.1),
    "free chain": (FreeGuide(structured=True), 800, 0.1),
    "amortised chain": (models.ChainGuide(nn.ChainEncoder(2, nn.RecurrentEncoder(1, 16))), 500, 0.03),
}
gaps, histories = {}, {}
for name, (guide, steps, rate) in guides.items():
    histories[name] = pyrohmm.fit_svi(
        model,
        observed,
        guide,
        loss=infer.PathELBO(),
        steps=20 if SMOKE else steps,
        learning_rate=rate,
        seed=0,
        progress=False,
    )
    gaps[name] = exact + infer.PathELBO().loss(model, guide, observed)
    print(f"{name:16} log p(x) - ELBO = {gaps[name]:.3f} nats in {N} sequences")

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for name, history in histories.items():
    axes.plot(history.step, [(loss * N * T + exact) / N for loss in history.loss], label=name)
axes.set(yscale="log", xlabel="step", ylabel="log p(x) - ELBO (nats a sequence)", title="what a guide loses")
axes.legend()
plt.show()

# %% [markdown]
# The gap is the KL divergence of the guide from the true posterior, $\mathrm{KL}(q \,\|\, p(z \mid x))$. The posterior
# of a hidden Markov model is itself a chain, with the model's own transitions; so the free chain reaches it, and the
# gap closes. Mean field cannot, however long one fits. The network comes near, in fewer steps; what is left is the
# price of amortisation, and for it the guide now does sequences that it has not seen:

# %%
new = hmm.expand((N,)).sample()
amortised = guides["amortised chain"][0]
agreement = (amortised.posterior(data.Sequences(new)).marginals - hmm.posterior(new).marginals).abs().mean().item()
print(f"mean difference of state probabilities, on new sequences: {agreement:.4f}")

# %% [markdown]
# In this model the guide was for show. It is needed as soon as the observations hang on something else that is latent
# at each step, as in `models.StructuredVAE`, whose codes follow a hidden Markov model and where a network decodes them.
#
# ## A latent vector for each sequence
#
# Sixty people, each with a level of their own that nobody measured: a random effect u, in both means and in how readily
# one leaves the first state. A model without it would take the people for states. `models.MixedEffectsHMM` hands u to
# the parts as an input. Given u the states are summed out exactly, so u is the only latent site; a network that reads
# the sequence, `nn.PooledEncoder`, proposes it.


# %%
def mixed(seed, weight, loc=((-1.0,), (1.0,))):
    """Two states, one random effect."""
    generator = torch.Generator().manual_seed(seed)
    return models.MixedEffectsHMM(
        nn.LinearRegressionEmission(2, 1, context=1, loc=loc, weight=weight, scale=0.7, generator=generator),
        transition=nn.RegressionTransition(2, context=1, sticky=2.0, generator=generator),
        encoder=nn.PooledEncoder(1, nn.StepEncoder(1, 16, generator=generator), generator=generator),
    )


people = 60
truth = mixed(0, weight=1.0)
with torch.no_grad():
    truth.transition.weights[0, 1] = 0.5  # log-odds of leaving the first state, for each unit of u
effects = torch.randn(people, 1)
lengths = torch.randint(15, 41, (people,))
train = truth.simulate(people, 40, lengths=lengths, effects=effects, seed=1)

# %% [markdown]
# Where the weight of u is 0, u changes nothing and the guide gets no hint what to encode: so the fit starts from a
# small weight. The other way in which such fits go wrong is that the guide learns to say nothing (q = prior costs no
# KL) before the model has learned to listen. **KL annealing** lets the KL count for less in the first steps. Here is
# the fit with and without; the KL of the guide from its prior, at the end, is how much the guide tells about a person:

# %%
STEPS = 20 if SMOKE else 1000
fits = {}
for name, annealing in {"no annealing": None, "annealed": STEPS // 3}.items():
    fit = mixed(1, weight=0.05)
    history = pyrohmm.fit_svi(
        fit,
        train,
        steps=STEPS,
        learning_rate=0.03,
        schedule="exponential",
        annealing=annealing,
        seed=0,
        progress=False,
    )
    fit.eval()
    with torch.no_grad():
        law = fit.random_effects(train)
        told = torch.distributions.kl_divergence(law, dist.Normal(torch.zeros(1), 1.0).to_event(1)).mean().item()
    fits[name] = fit, history, told
    print(f"{name:14} tells {told:.2f} nats a person, spread of levels {fit.emission.weight.abs().mean():.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, (_, history, _) in fits.items():
    axes[0].plot(history.step, history.loss, label=name)
    axes[1].plot(history.step, history.kl_weight, label=name)
axes[0].set(xlabel="step", ylabel="loss (nats per observation)")
axes[1].set(xlabel="step", ylabel="weight of the KL")
axes[0].legend()
plt.show()

# %% [markdown]
# Here both come to the same, by different ways. Where a network decodes u it is often otherwise.
#
# ### How tight is the bound?
#
# With several draws of u for each sequence, the mean of their importance weights p(x, u) / q(u | x) is a better bound
# on log p(x): it grows with the number of draws, to log p(x) itself. `infer.importance_log_prob` computes it and tells,
# by the effective sample size, how far it can be trusted. It is a check of the guide at the same time: a guide that is
# the posterior has the bound of one draw already, and all draws count alike.

# %%
fit = fits["annealed"][0]
bounds = {}
for particles in (1, 10, 100) if SMOKE else (1, 10, 100, 1000):
    estimate = infer.importance_log_prob(fit, train, num_particles=particles, seed=0, progress=False)
    bounds[particles] = estimate.log_prob.mean().item()
    share = (estimate.effective_sample_size / particles).mean().item()
    print(f"{particles:5} draws: {bounds[particles]:.3f} nats a person, effective share {share:.2f}")

# %% [markdown]
# ### What the guide knows about people
#
# u and its weight are known up to a sign, and where u = 0 lies depends on the means of the states. What is in the units
# of the data is a person's own mean in a state.

# %%
with torch.no_grad():
    law = fit.random_effects(train)
    loc, weight = fit.emission.loc[0], fit.emission.weight[0, 0]
    level, spread = (loc + weight * law.mean)[:, 0], (weight.abs() * law.stddev)[:, 0]
true_level = -1 + effects[:, 0]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.errorbar(true_level, level, 2 * spread, fmt="o", markersize=4, linewidth=1)
axes.axline((0, 0), slope=1, color="0.5", linewidth=1)
axes.set(xlabel="true mean of a person in the first state", ylabel="by the guide, 2 sd")
plt.show()

correlation = torch.corrcoef(torch.stack([level, true_level]))[0, 1].item()
covered = ((level - true_level).abs() < 2 * spread).float().mean().item()
print(f"correlation {correlation:.3f}, within two standard deviations {covered:.2f}")

# %% [markdown]
# The guide is somewhat too sure: fewer than 95 per cent are within two standard deviations. The effective share had
# told that it is not quite the posterior, without knowing the truth.
#
# ## What was recovered

# %%
if not SMOKE:
    assert gaps["free chain"] < 0.1 and gaps["amortised chain"] < 0.1
    assert gaps["mean field"] > 10
    assert agreement < 0.05
    assert correlation > 0.9
    assert all(told > 1 for *_, told in fits.values())
    assert bounds[1] < bounds[10] < bounds[1000]
    assert abs(weight.abs() - effects.std()) < 0.3
    assert covered > 0.7
