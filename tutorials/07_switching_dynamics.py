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
# # 7. Switching dynamics
#
# What changes in time is often not where something is but how it moves. A switching state space model has both: a
# continuous path h that nobody sees, discrete states z that choose its dynamics, and observations x of the path. This
# tutorial drives a figure of eight, looks at it through eight noisy sensors that fail now and then, and gets back the
# track, the two regimes, and what the sensors missed.

# %%
import math
import os

import matplotlib.pyplot as plt
import torch

import pyrohmm
from pyrohmm import data, infer, models

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=pyrohmm.checks.state_colours(8))  # for the colour-blind too

# %% [markdown]
# ## The drive
#
# Two circles that touch in the origin. On the left one drives counter-clockwise, on the right clockwise, and through
# the origin always upwards: there the noise decides which circle comes next. Two regimes, each a rotation about its own
# centre; which one holds depends on where one is.


# %%
def drive(num_steps, noise=0.03):
    """Places (T, 2) and regimes (T,): 0 on the left, 1 on the right."""
    angle = 2 * math.pi / 25
    place, places, regimes = torch.tensor([0.01, 0.0]), [], []
    for _ in range(num_steps):
        regime = int(place[0] > 0)
        centre = torch.tensor([2.0 * regime - 1.0, 0.0])
        turn = -angle if regime else angle
        away = place - centre
        away = away * (1 + 0.2 * (1 - away.norm()))  # back to the circle, from which the noise leads away
        rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        place = centre + rotation @ away + noise * torch.randn(2)
        places.append(place)
        regimes.append(regime)
    return torch.stack(places), torch.tensor(regimes)


N, T = (10, 50) if SMOKE else (80, 50)
places, regimes = drive(N * T)
loadings, offset = torch.randn(8, 2), torch.randn(8)
clean = places @ loadings.T + offset
x = clean + 0.1 * torch.randn(clean.shape)

# %% [markdown]
# Cut into pieces of fifty steps, and in each piece five steps in a row without any measurement. The last quarter of the
# pieces is kept for the test.

# %%
clean, x, regimes, places = (value.unflatten(0, (N, T)) for value in (clean, x, regimes, places))
begin = torch.randint(5, T - 10, (N, 1))
missing = (torch.arange(T) >= begin) & (torch.arange(T) < begin + 5)
everything = data.Sequences(x.masked_fill(missing.unsqueeze(-1), torch.nan), labels=regimes, mask=~missing)
cut = N * 3 // 4
train, test = everything[:cut].as_whole(), everything[cut:].as_whole()

figure, axes = plt.subplots(figsize=(8, 2.5), layout="constrained")
axes.plot(x[0, :, :6].masked_fill(missing[0].unsqueeze(-1), torch.nan))
axes.set(xlabel="step", ylabel="sensors", title="six of the sensors, with a gap")
plt.show()

# %% [markdown]
# ## The model
#
# `models.SwitchingLDS`: two states, each with linear dynamics of a path in two dimensions, and linear observations.
# With `recurrent="latent"` the transitions depend on the path, as they do here.
#
# Given the path the states form a chain, so they are summed out exactly. The path is proposed by a guide, a network
# that reads the sequence. What is hard in these models is the start: from a random one most fits use one state for
# all. `infer.initialize_switching` finds factors of the observations, smooths them, and fits a hidden Markov model of
# their motion. From there stochastic variational inference goes on, with everything together.

# %%
model = models.SwitchingLDS(2, 2, 8, recurrent="latent", generator=torch.Generator().manual_seed(0))
infer.initialize_switching(model, train, restarts=2 if SMOKE else 10, seed=0)
model.align(train.labels, train)
at_start = (model.decode(test) == test.labels).float().mean().item()

history = pyrohmm.fit_svi(
    model,
    train,
    steps=10 if SMOKE else 400,
    batch_size=min(20, cut),
    learning_rate=0.01,
    schedule="cosine",
    seed=0,
    progress=False,
)
model.eval()
model.align(train.labels, train)
accuracy = (model.decode(test) == test.labels).float().mean().item()
print(f"steps of the test pieces in the right regime: {at_start:.3f} at the start, {accuracy:.3f} after the fit")

# %%
figure, axes = plt.subplots(figsize=(8, 2.5), layout="constrained")
axes.plot(history.step, history.loss)
axes.set(xlabel="step", ylabel="loss (nats per step)")
plt.show()

# %% [markdown]
# ## The track
#
# The inferred path has coordinates of its own: any turned and stretched copy of the plane explains the sensors as well.
# For the picture it is laid upon the true one by least squares. Colours are decoded states, of pieces that the model
# has not been fitted to.

# %%
with torch.no_grad():
    path = model.path(test).sample((50,)).mean(0)[:, 0]  # (N, T, 2)
flat = torch.cat([path.flatten(0, 1), torch.ones(path.shape[:2].numel(), 1)], 1)
laid = (flat @ torch.linalg.lstsq(flat, places[cut:].flatten(0, 1)).solution).unflatten(0, path.shape[:2])
decoded = model.decode(test)

figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True, layout="constrained")
for ax, points, states, title in (
    (axes[0], places[cut:], test.labels, "true places and regimes"),
    (axes[1], laid, decoded, "inferred"),
):
    for k in range(2):
        ax.scatter(*points[states == k].T, s=4, label=f"state {k}")
    ax.set(title=title, aspect="equal", xlabel="first coordinate (radii)")
axes[0].set_ylabel("second coordinate (radii)")
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=3)
plt.show()

# %% [markdown]
# ## Segments
#
# A decoded path, as a list of what happened when.

# %%
for states in decoded[:3]:
    lengths = states.unique_consecutive(return_counts=True)
    ends = lengths[1].cumsum(0)
    print([f"{e - n}-{e - 1}: {k}" for k, n, e in zip(*(v.tolist() for v in (*lengths, ends)), strict=True)])

# %% [markdown]
# ## Filling the gaps
#
# In a gap the guide has nothing to go by but what it sees on both sides, and what it has learned of how things move.
# Sensors in a gap are those of the path there. Against it: a straight line over the gap.

# %%
gap = missing[cut:]
with torch.no_grad():
    filled = model.emission(path).mean
before, after = begin[cut:] - 1, begin[cut:] + 5
share = ((torch.arange(T) - before) / (after - before)).unsqueeze(-1)
ends = [x[cut:].gather(1, at.unsqueeze(-1).expand(-1, 1, 8)) for at in (before, after)]
line = torch.lerp(*ends, share)
error = {
    name: (guess - clean[cut:])[gap].square().mean().sqrt().item()
    for name, guess in {
        "model": filled,
        "straight line": line,
        "mean": x[:cut].mean((0, 1)).expand(x[cut:].shape),
    }.items()
}
print({name: round(value, 3) for name, value in error.items()})

# The gap and the sensor in which the straight line is most wrong.
i, _, sensor = torch.unravel_index((line - clean[cut:]).abs().mul(gap.unsqueeze(-1)).argmax(), line.shape)
inside = gap[i].nonzero()[:, 0]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(x[cut + i, :, sensor].masked_fill(gap[i], torch.nan), "k.", markersize=4, label="seen")
axes.plot(clean[cut + i, :, sensor], color="0.7", label="without noise")
for name, guess, style in (("model", filled, "-"), ("straight line", line, "--")):
    axes.plot(inside, guess[i, inside, sensor], style, linewidth=2, label=name)
axes.set(xlabel="step", ylabel=f"sensor {sensor}")
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# ## What was recovered
#
# Fits of such models end in different optima. Fit several, with other seeds, and keep the one with the lowest loss.

# %%
if not SMOKE:
    assert accuracy > 0.9
    assert accuracy > at_start - 0.02
    assert error["model"] < error["straight line"] < error["mean"]
    assert (laid - places[cut:]).square().sum(-1).mean().sqrt() < 0.2
