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
# %% [markdown]
# # 4. Neural emissions and transitions: chorales
#
# A table says what a state emits, and another where it goes. A network in the place of either can also look at what is
# known: the observation before, or the time. The states stay discrete and are summed out exactly, so training stays
# maximum likelihood. We write three models of Bach's chorales and see what each network buys on pieces that were held
# out.

# %%
import os

import matplotlib.pyplot as plt
import torch

import pyrohmm
from pyrohmm import data, models, nn

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests

# %% [markdown]
# ## Data
#
# Each piece is a sequence of chords, one for each beat: 88 keys that sound or do not. We keep the compass of the choir,
# since the other keys are silent in all pieces (but for one note).

# %%
music = data.load_polyphony("jsb")
low, high = 22, 76


def choir(part):
    return data.Sequences(part.x[..., low:high], part.lengths)


train, valid, test = (choir(part) for part in music)
D = high - low
print(train)


def draw(rolls, titles):
    """Piano rolls, a column each."""
    _, axes = plt.subplots(1, len(rolls), figsize=(8, 2.6), sharey=True, squeeze=False)
    for panel, roll, title in zip(axes[0], rolls, titles, strict=True):
        panel.imshow(roll.T, aspect="auto", origin="lower", cmap="Greys", extent=(0, len(roll), low + 21, high + 21))
        panel.set(xlabel="step", title=title)
    axes[0, 0].set_ylabel("MIDI note")
    plt.show()


first, second = (piece[:60] for piece in train.to_list()[:2])
draw([first, second], ["a chorale", "another one"])

# %% [markdown]
# ## A table: the plain model
#
# Sixteen states, each with a probability for every key, fitted by EM from clusters of chords. The score is what the
# model needs for a held-out chord, in nats; less is better.

# %%
K = 16


def score(model, part):
    model.eval()
    with torch.no_grad():
        return -(model.log_prob(part).sum() / part.num_observed).item()


hmm = models.HMM(nn.BernoulliEmission(K, D))
pyrohmm.fit_em(hmm, train, steps=2 if SMOKE else 25, initialization="kmeans", seed=0, progress=False)
scores = {"table": score(hmm, test)}
print(scores)

# %% [markdown]
# What are the states? Chords that are heard together. The picture shows a piece with its decoded states as bands.

# %%
with torch.no_grad():
    pyrohmm.checks.plot_series(test[:1].trim(), hmm.posterior(test[:1].trim()))
plt.show()

# %% [markdown]
# ## A network that emits
#
# Voices move by small steps, or hold their note. The plain model cannot know: given the state, the chord before says
# nothing. `AutoregressiveEmission` takes any network of the state and the previous chord, here
#
# $$\text{logits}(x_t) = b_{z_t} + W x_{t-1} + V\,\mathrm{relu}(c_{z_t} + U x_{t-1}).$$
#
# Its input is the one-hot state beside the previous chord, so the first layer holds b, W, c and U. Written as a
# `Sequential` that starts with this layer, the products of the previous chord are made once and not for each state.
# We let b start where EM ended, and V at zero.


# %%
class Residual(torch.nn.Module):
    """[direct; hidden] -> direct + V relu(hidden)."""

    def __init__(self, hidden, dim):
        super().__init__()
        self.dim = dim
        self.dropout = torch.nn.Dropout(0.2)
        self.out = torch.nn.Linear(hidden, dim, bias=False)
        torch.nn.init.zeros_(self.out.weight)

    def forward(self, features):
        return features[..., : self.dim] + self.out(self.dropout(features[..., self.dim :].relu()))


def emission(hidden=32):
    layer = torch.nn.Linear(K + D, D + hidden, bias=False)
    with torch.no_grad():
        layer.weight[:D, :K] = hmm.emission.logits.T
        layer.weight[:D, K:] = 0.0
    return nn.AutoregressiveEmission(K, torch.nn.Sequential(layer, Residual(hidden, D)), "bernoulli", dim=D)


def fit(model, train, valid):
    """By gradients, on minibatches; what is kept are the parameters that were best on the validation set."""
    return pyrohmm.fit_svi(
        model,
        train,
        steps=4 if SMOKE else 120,
        batch_size=20,
        learning_rate=0.05,
        schedule="cosine",
        validation=valid,
        evaluate_every=2 if SMOKE else 20,
        seed=0,
        progress=False,
    )


neural = models.NeuralHMM(initial=nn.Initial(K), transition=nn.Transition(K), emission=emission())
neural.initial.load_state_dict(hmm.initial.state_dict())
neural.transition.load_state_dict(hmm.transition.state_dict())
history = fit(neural, train, valid)
scores["network emits"] = score(neural, test)
print(history)
print(scores)

# %%
pyrohmm.checks.plot_history(history)
plt.show()

# %% [markdown]
# ## A network that moves
#
# Where a phrase goes depends on where one is: on the beat of the bar, and on how near the end is, where the cadence
# comes. Such things are inputs. `inputs` (N, T, C) are known at every step; `NeuralTransition` adds what a network
# makes of them to the logits of the transition matrix.


# %%
def with_clock(x, lengths):
    """The beat, of four, and how near the end is."""
    step = torch.arange(x.shape[1])
    beat = torch.nn.functional.one_hot(step % 4, 4).float().expand(len(x), -1, -1)
    left = (lengths.unsqueeze(-1) - 1 - step).clamp(min=0)
    return data.Sequences(x, lengths, inputs=torch.cat([beat, torch.exp(-left / 3).unsqueeze(-1)], -1))


timed_train, timed_valid, timed_test = (with_clock(part.x, part.lengths) for part in (train, valid, test))
moving = models.NeuralHMM(
    initial=nn.Initial(K), transition=nn.NeuralTransition(K, context=5, hidden=16), emission=emission()
)
moving.initial.load_state_dict(hmm.initial.state_dict())
with torch.no_grad():
    moving.transition.logits.copy_(hmm.transition.logits)
fit(moving, timed_train, timed_valid)
scores["network moves, too"] = score(moving, timed_test)
print(scores)

# %% [markdown]
# The matrix of the last step against that of one in the middle: at the end other states are likely.

# %%
clock = with_clock(torch.zeros(1, 40, D), torch.tensor([40])).inputs
with torch.no_grad():
    matrices = moving.transition.matrix(clock).softmax(-1)[0]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for panel, step, title in zip(axes, (19, 39), ("into step 20 of 40", "into the last step"), strict=True):
    panel.imshow(matrices[step], cmap="Greys", vmin=0, vmax=1)
    panel.set(title=title, xlabel="to state")
axes[0].set_ylabel("from state")
plt.show()

# %% [markdown]
# ## Music
#
# Simulation draws chord after chord; the emission sees what was drawn before. In the plain model each chord is drawn
# anew. In the others notes are held and voices move.

# %%
clock = with_clock(torch.zeros(20, 60, D), torch.full((20,), 60)).inputs
plain = hmm.simulate(20, 60, seed=3).to_list()
voiced = moving.simulate(20, 60, inputs=clock, seed=3).to_list()
draw([first, plain[0], voiced[0]], ["Bach", "table", "networks"])


def held(roll):
    """The part of notes that sounded one step before."""
    return ((roll[1:] * roll[:-1]).sum() / roll[1:].sum()).item()


pieces = {"Bach": test.to_list(), "table": plain, "networks": voiced}
notes_held = {name: sum(map(held, some)) / len(some) for name, some in pieces.items()}
print("notes held:", {name: round(value, 2) for name, value in notes_held.items()})

# %% [markdown]
# ## What was recovered
#
# On held-out pieces the network that sees the chord before is far better than the table; the clock adds little. A
# plain model with many more states would come closer: `experiments/polyphony` compares them.

# %%
if not SMOKE:
    assert scores["network emits"] < scores["table"] - 0.6
    assert abs(scores["network moves, too"] - scores["network emits"]) < 0.2
    assert abs(notes_held["networks"] - notes_held["Bach"]) < abs(notes_held["table"] - notes_held["Bach"])
