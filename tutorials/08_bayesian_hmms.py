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
# # 8. Bayesian hidden Markov models
#
# With little data the best parameters are not the whole story: how sure are we of them? Here the parameters are random
# variables with priors, and what we want is their posterior. Two ways: variational Bayes, which is as fast as EM and
# says how many states are needed; and NUTS, Hamiltonian Monte Carlo, which is exact in the long run. It runs on the
# program as it is, because the states are summed out: what is left is continuous.

# %%
import os

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value

import pyrohmm
from pyrohmm import checks, models, nn

SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
pyro.set_rng_seed(0)
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=checks.state_colours(8))  # for the colour-blind too

# %% [markdown]
# Counts in two regimes, a quiet one and a busy one: four sequences of forty steps, and no more.

# %%
truth = models.HMM(nn.PoissonEmission(2, 1, rate=[[3.0], [9.0]]), transition=nn.Transition(2, sticky=2.5))
observed = truth.double().simulate(4, 40, seed=0)
print(observed.x[0, :, 0].int().tolist())

# %% [markdown]
# ## Priors
#
# Conjugate priors are given to the parts: each state's rate is Gamma(2, 0.3), of mean 6.7 and wide; rows of transitions
# are Dirichlet.


# %%
def parts(num_states, concentration):
    """Emission, initial and transition with their priors."""
    rows = dist.Dirichlet(torch.full((num_states,), concentration, dtype=torch.float64))
    return {
        "emission": nn.PoissonEmission(num_states, 1, prior=dist.Gamma(2.0, 0.3)).double(),
        "initial": nn.Initial(num_states, prior=rows).double(),
        "transition": nn.Transition(num_states, prior=rows).double(),
    }


# %% [markdown]
# ## Variational Bayes
#
# The posterior of parameters and paths is approximated by a product, q(parameters) q(paths), by turns; each step is a
# closed formula, and the bound on log p(x) never falls.
#
# Concentrations well below 1 ask for few transitions. So give it more states than can be needed, here six, and see how
# many it leaves without data, or nearly so. In maximum likelihood every state is used; here a state has to pay for its
# parameters.

# %%
vb = pyrohmm.fit_vb(
    models.HMM(**parts(6, 0.1)),
    observed,
    steps=20 if SMOKE else 300,
    restarts=5,
    initialization="random",
    seed=0,
    progress=False,
)
occupancy = vb.posterior(observed).marginals.mean((0, 1)).sort(descending=True).values
print("share of the steps in each state:", occupancy.detach().numpy().round(3))

# %% [markdown]
# The bound also compares models. It counts, unlike the likelihood, what a state costs.

# %%
bounds = {}
for k in (1, 2, 3, 4):
    found = pyrohmm.fit_vb(
        models.HMM(**parts(k, 1.0)),
        observed,
        steps=5 if SMOKE else 100,
        restarts=5,
        initialization="random",
        seed=0,
        progress=False,
    )
    bounds[k] = found.lower_bound
print(bounds)

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(vb.lower_bounds)
axes[0].set(xlabel="step", ylabel="bound on log p(x) (nats)", title="six states: it never falls")
axes[1].plot(list(bounds), list(bounds.values()), "o-")
axes[1].set(xlabel="states", ylabel="bound (nats)", xticks=list(bounds), title="the bound chooses")
plt.show()

# %% [markdown]
# ## NUTS
#
# `models.BayesianHMM` makes sites of the parameters, under the same priors. It is an ordinary Pyro program, so NUTS
# takes it as it is. Two chains, from different starts, to see whether they come to the same. We let one of them start
# with the quiet regime as state 0, the other with the busy one.

# %%
model = models.BayesianHMM(**parts(2, 1.0))
WARMUP, DRAWS = (3, 5) if SMOKE else (100, 150)


def run(seed, rates):
    """The draws of one chain, {site: (draws, ...)}."""
    pyro.set_rng_seed(seed)
    start = {
        "rate": torch.tensor(rates, dtype=torch.float64).unsqueeze(-1),
        "initial": torch.full((2,), 0.5, dtype=torch.float64),
        "transition": torch.full((2, 2), 0.5, dtype=torch.float64),
    }
    kernel = NUTS(model, max_plate_nesting=2, max_tree_depth=4, init_strategy=init_to_value(values=start))
    mcmc = MCMC(kernel, DRAWS, WARMUP, disable_progbar=True)
    mcmc.run(observed)
    return mcmc.get_samples()


chains = [run(1, [3.0, 9.0]), run(2, [9.0, 3.0])]
draws = {site: torch.stack([chain[site] for chain in chains]) for site in chains[0]}
print({site: tuple(value.shape) for site, value in draws.items()})

# %% [markdown]
# ### States have no names
#
# The posterior is the same in every order of the states, and each chain keeps to the order it fell into. So R-hat,
# which compares the chains, reports a disaster where there is none. (Means over all draws would be nonsense too: half
# of each regime.)

# %%
raw = checks.to_inference_data(model, observed, draws, align=False, posterior_predictive=0, progress=False)
before = az.summary(raw, var_names=["rate", "transition"])
print(before[["mean", "sd", "r_hat"]])

# %% [markdown]
# `checks.to_inference_data` matches the states of every draw to those of the others, by the steps of the data in which
# they are found, and puts all axes of states into the common order. (`infer.align_draws` does it by the values of a
# site; and Gaussian states can be ordered in the program itself, `BayesianHMM(..., ordered=True)`.) The likelihood must
# not change by it, and this is checked.

# %%
aligned = checks.to_inference_data(
    model, observed, draws, coords={"state": ["a", "b"], "next_state": ["a", "b"]}, progress=False
)
after = az.summary(aligned, var_names=["rate", "transition"])
print(after[["mean", "sd", "ess_bulk", "r_hat"]])

# %%
az.plot_trace(aligned, var_names=["rate"])
plt.gcf().set_size_inches(8, 3)
plt.show()

# %% [markdown]
# Everything else is in the result too: the log-likelihood of each sequence, one-step-ahead predictions, replicated
# data. So ArviZ can go on from here; here are the groups.

# %%
print({group: sorted(aligned[group].data_vars) for group in ("posterior", "log_likelihood", "posterior_predictive")})

# %% [markdown]
# ### The two answers side by side
#
# Variational Bayes with two states gives Gamma laws of the rates. It treats parameters and paths as independent, so it
# takes the paths for better known than they are, and tends to be too sure. How much, the draws of NUTS tell.

# %%
two = pyrohmm.fit_vb(
    models.HMM(**parts(2, 1.0)), observed, restarts=5, initialization="random", seed=0, progress=False
).emission
by_vb = sorted(zip(two.mean.flatten().tolist(), two.stddev.flatten().tolist(), strict=True))
posterior = aligned["posterior"]["rate"].values.reshape(-1, 2)
posterior = posterior[:, posterior.mean(0).argsort()]

grid = torch.linspace(1, 12, 200, dtype=torch.float64).reshape(-1, 1, 1)
density = two.log_prob(grid).exp()[..., 0]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for k, (mean, deviation) in enumerate(by_vb):
    axes.hist(posterior[:, k], bins=30, density=True, alpha=0.5, label=f"NUTS, {'quiet' if k == 0 else 'busy'}")
    print(f"VB {mean:.2f} +- {deviation:.2f}, NUTS {posterior[:, k].mean():.2f} +- {posterior[:, k].std():.2f}")
axes.plot(grid.flatten(), density, color="black", linewidth=1, label=["variational Bayes", None])
axes.plot([3, 9], [0, 0], "^", color="red", clip_on=False, label="truth")
axes.set(xlabel="rate", ylabel="posterior density")
axes.legend()
plt.show()

# %% [markdown]
# And what one does with draws: any function of the parameters has a posterior. How long does a busy time last?

# %%
busy = int(draws["rate"][0].mean(0).flatten().argmax()), int(draws["rate"][1].mean(0).flatten().argmax())
stay = torch.cat([draws["transition"][chain, :, k, k] for chain, k in enumerate(busy)])
duration = (1 / (1 - stay)).quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
print("expected length of a busy time, 5, 50 and 95 per cent:", duration.numpy().round(1))

# %% [markdown]
# ## What was recovered

# %%
assert all(later > earlier - 1e-6 for earlier, later in zip(vb.lower_bounds, vb.lower_bounds[1:], strict=False))
if not SMOKE:
    assert (occupancy > 0.05).sum() == 2
    assert max(bounds, key=bounds.get) == 2
    assert before["r_hat"].astype(float).max() > 1.5
    assert after["r_hat"].astype(float).max() < 1.05
    assert abs(posterior.mean(0) - [3.0, 9.0]).max() < 1.0
    assert abs(posterior.mean(0) - [mean for mean, _ in by_vb]).max() < 0.3
