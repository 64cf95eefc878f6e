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
# # 3. What `markov` does: from the loop to the kernel
#
# A loop over time becomes three tensors, and these become one number. Here is each of the steps in the open, with the
# enumeration of all paths beside it.

# %%
import itertools
import os
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pyrohmm
from pyrohmm import ops, testing

SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
pyro.set_rng_seed(0)
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=pyrohmm.checks.state_colours(8))  # for the colour-blind too

# %%
K = 3
initial = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
transition = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]).log().requires_grad_()
loc = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
x = torch.tensor([-0.7, 0.1, 0.6, 1.8, 2.2, 0.4])


def model(x, vectorized=True, talk=False):
    z = None
    for t in pyrohmm.markov("time", len(x), vectorized=vectorized):
        z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
        if talk:
            print(f"t = {t}, state of shape {tuple(z.shape)}, observation of shape {tuple(x[t].shape)}")
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])


# %% [markdown]
# ## The body runs twice
#
# Six steps, but two runs of the body: one for the first step, one for all others at once. The state is not drawn: it
# has all K values at the same time, in a dimension of its own to the left of everything else. In the second run there
# are two such dimensions, one for the state and one for the state of the step before.

# %%
model(x, talk=True)

# %% [markdown]
# ## Three tensors
#
# The log-probabilities of the sites in the two runs are the potentials of the chain: initial (K), transition (K, K),
# observation (T, K). By hand:

# %%
initial_logits = initial.log_softmax(-1)
transition_logits = transition.log_softmax(-1)
observation_logits = dist.Normal(loc, 1.0).log_prob(x.unsqueeze(-1))  # (T, K)
print(observation_logits.shape)

# %% [markdown]
# ## Sum over all paths
#
# What we want is the log of a sum over $K^T = 729$ paths. First as it is written:


# %%
def joint(path):
    total = initial_logits[path[0]] + observation_logits[0, path[0]]
    for t in range(1, len(path)):
        total = total + transition_logits[path[t - 1], path[t]] + observation_logits[t, path[t]]
    return total


every_path = list(itertools.product(range(K), repeat=len(x)))
by_list = torch.stack([joint(path) for path in every_path]).logsumexp(0)

# %% [markdown]
# Then by the forward recursion, which needs T steps of K² additions:

# %%
alpha = initial_logits + observation_logits[0]
for t in range(1, len(x)):
    alpha = (alpha.unsqueeze(-1) + transition_logits).logsumexp(-2) + observation_logits[t]
by_recursion = alpha.logsumexp(-1)

# %% [markdown]
# Then by the library, whose kernels are that recursion compiled; by its oracle, which lists the paths and is there for
# you to test your own parts with; and by the program, where the number is a site named like the loop.

# %%
by_kernel = ops.log_partition(initial_logits, transition_logits, observation_logits)
by_oracle = testing.enumeration.log_partition(initial_logits, transition_logits, observation_logits)
trace = pyro.poutine.trace(model).get_trace(x)
by_program = trace.log_prob_sum()
values = torch.stack([by_list, by_recursion, by_kernel, by_oracle, by_program]).detach()
print(values)
print([name for name, site in trace.nodes.items() if site["type"] == "sample"])

# %% [markdown]
# ## The gradient is the posterior
#
# The derivative of $\log Z$ by an observation's potential is the posterior probability of that state at that step. So
# one backward pass gives all that EM's E-step wants, and every gradient in training is made of these probabilities.

# %%
leaf = observation_logits.detach().requires_grad_()
(gradient,) = torch.autograd.grad(ops.log_partition(initial_logits, transition_logits, leaf), leaf)
marginals = pyrohmm.posterior(model)(x)["time"].marginals.squeeze(0)
print(gradient.numpy().round(3))

figure, axes = plt.subplots(figsize=(8, 2.5))
axes.stackplot(range(1, len(x) + 1), marginals.detach().T, labels=[f"state {k}" for k in range(K)])
axes.set(xlabel="step", ylabel="probability", ylim=(0, 1))
axes.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0))
plt.show()

# %% [markdown]
# ## The same program, enumerated by Pyro
#
# `vectorized=False` is the plain sequential program, with sites `z_0, x_0, z_1, ...`, for Pyro's own `TraceEnum_ELBO`.
# Same number, same gradient. It runs the body T times and contracts what it finds, which takes its time.


# %%
def empty(*args, **kwargs):
    pass


def loss_and_gradient(elbo, **kwargs):
    loss = elbo.differentiable_loss(model, empty, x, **kwargs)
    return loss, torch.autograd.grad(loss, [initial, transition, loc])


fast, fast_gradient = loss_and_gradient(Trace_ELBO())
slow, slow_gradient = loss_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), vectorized=False)
print(fast.item(), slow.item())


# %%
def seconds(elbo, repeats, **kwargs):
    loss_and_gradient(elbo, **kwargs)
    begin = time.perf_counter()
    for _ in range(repeats):
        loss_and_gradient(elbo, **kwargs)
    return (time.perf_counter() - begin) / repeats


x = torch.randn(20 if SMOKE else 100)
ours = seconds(Trace_ELBO(), 10)
theirs = seconds(TraceEnum_ELBO(max_plate_nesting=1), 2, vectorized=False)
print(f"{len(x)} steps: {1e3 * ours:.1f} ms collapsed, {1e3 * theirs:.1f} ms enumerated")

# %% [markdown]
# ## What a loop cannot be
#
# Since the body runs twice and not T times, it must not do anything that differs from step to step but by slices: no
# `if t == 5`, no list of states, no branch on a state's value. The library notices and says what to write instead.


# %%
def second_order(x):
    z = before = None
    for t in pyrohmm.markov("time", len(x)):
        older, before = before, z
        logits = initial if z is None else transition[z] if older is None else transition[z] + transition[older]
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])


try:
    second_order(x)
except Exception as error:
    refused = str(error)
    print(refused)

# %% [markdown]
# ## What was recovered

# %%
assert torch.allclose(values, values[0])
assert torch.allclose(gradient, marginals, atol=1e-6)
assert torch.allclose(fast, slow)
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fast_gradient, slow_gradient, strict=True))
assert "two steps" in refused or "older" in refused
