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
# # 11. Speed: CPU, GPU, long sequences, and what `auto` chooses
#
# All exact inference goes through one recursion over time, and each operation has three implementations: a reference in
# plain torch, kernels for the CPU, kernels for the GPU. `impl="auto"` picks one. This tutorial shows what it picks,
# why, and what it costs on your machine.

# %%
import os
import time
from functools import partial

import matplotlib.pyplot as plt
import torch

import pyrohmm
from pyrohmm import ops, testing

SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"


def chain(num_states, num_sequences, num_steps, **kwargs):
    """Random logits of that size, on the device."""
    made = testing.random_chain(num_states, num_steps, (num_sequences,), dtype=torch.float32, **kwargs)
    return [logits.to(device) for logits in made.logits]


# %% [markdown]
# ## What is chosen, and why
#
# Two decisions. *Which implementation*: where the tensors are. *Which form*: with probabilities, scaled at each step, a
# step is one matrix product; with log-probabilities it takes K² exponentials. The first is used where it is as exact as
# the second, which a cheap bound on the transitions tells: no transition may be impossible, or nearly so.

# %%
logits = chain(8, 32, 100)
explained = ops.explain(*logits)
print(explained)

left_to_right = pyrohmm.nn.left_to_right(8).to(device)
strict = (logits[0], logits[1].masked_fill(~left_to_right, -torch.inf), logits[2])
explained_strict = ops.explain(*strict)
print(explained_strict)

# %% [markdown]
# ## How long it takes
#
# Medians of a few repeats, after a first call that compiles or loads the kernels. Figures from one notebook say little
# of other machines; `python -m benchmarks` is the careful way, and its tables are in the documentation.


# %%
def milliseconds(call, repeats=5):
    call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    return sorted(times)[len(times) // 2]


def gradient(logits, impl):
    leaves = [value.detach().requires_grad_() for value in logits]
    return torch.autograd.grad(ops.log_partition(*leaves, impl=impl).sum(), leaves)


IMPLS = ("reference", "auto")
table = {}
for num_states in (2, 8, 32):
    logits = chain(num_states, 16, 50 if SMOKE else 100)
    table[num_states] = [milliseconds(partial(gradient, logits, impl)) for impl in IMPLS]
    print(num_states, dict(zip(IMPLS, table[num_states], strict=True)))

figure, axes = plt.subplots(figsize=(6, 3))
for impl, column in zip(IMPLS, zip(*table.values(), strict=True), strict=True):
    axes.loglog(list(table), column, marker="o", label=impl)
axes.set(xlabel="states", ylabel="ms", title="log Z and its gradient, 16 sequences")
axes.set_xticks(list(table), map(str, table))
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# ## Long sequences
#
# Cost grows with T, memory too, at T K numbers: shared transitions are never repeated over time, and expected counts
# are one matrix product. log Z is added up in float64 in any case, so a hundred thousand steps in float32 lose nothing.

# %%
num_steps = 2_000 if SMOKE else 100_000
logits = chain(8, 1, num_steps)
exact = ops.log_partition(*(value.double() for value in logits))
fast = ops.log_partition(*logits)
print(f"{num_steps} steps: {milliseconds(lambda: ops.smooth(*logits), 3):.0f} ms to smooth")
error = ((fast.double() - exact) / exact).abs().item()
print(f"relative error of log Z in float32: {error:.1e}")

# %% [markdown]
# ## What costs more
#
# - A transition matrix **for each step** (B, T-1, K, K), as from inputs: the matrices are read once each, and memory is
#   what limits. Prefer shared ones where you can.
# - `validate_args` and Pyro's validation look at the data in each step: fine on the CPU, but on a GPU each look waits
#   for the device. `pyro.enable_validation(False)` for training there.
# - Second derivatives (entropy, Kullback-Leibler divergence as part of a loss) cost one more pass in each direction.
# - Very ragged batches: a step of the recursion is done for all sequences that are still running; sequences of similar
#   lengths in a minibatch waste less. `Sequences.batches` trims each minibatch to its longest.
#
# On a GPU nothing changes in a program: `model.to("cuda")`, `data.to("cuda")`.

# %%
per_step = chain(8, 16, 200, transitions="each")
shared = chain(8, 16, 200)
print(
    f"shared {milliseconds(lambda: gradient(shared, 'auto')):.2f} ms, "
    f"one a step {milliseconds(lambda: gradient(per_step, 'auto')):.2f} ms"
)

# %% [markdown]
# ## What was shown
#
# Times are not asserted, numbers are: the fast implementations give what the reference gives.

# %%
logits = chain(8, 16, 50)
for ours, theirs in zip(gradient(logits, "auto"), gradient(logits, "reference"), strict=True):
    assert torch.allclose(ours, theirs, atol=1e-4)
assert explained.form == "scaled" and explained_strict.form == "log"
assert error < 1e-6
