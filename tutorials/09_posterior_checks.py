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
# # 9. Posterior checks: finding out where a model is wrong
#
# Every fit ends with parameters, also that of a wrong model. The likelihood says which of two models is better, but not
# whether the better one is any good. So ask the model for what it has not been fitted to: does it make data that look
# like ours? Here are three sets of data, for each of which the plain model is wrong in another way; a check for each
# kind of wrong; and three better models, which pass.

# %%
import os

import matplotlib.pyplot as plt
import torch

import pyrohmm
from pyrohmm import checks, models, nn

SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
torch.manual_seed(0)
plt.rcParams["figure.dpi"] = 75
N = 5 if SMOKE else 20  # sequences
SIMULATIONS = 19 if SMOKE else 199


def fitted(model, data):
    """The model after EM from several starts."""
    pyrohmm.fit_em(model, data, steps=20 if SMOKE else 200, restarts=5, initialization="kmeans", seed=0, progress=False)
    return model


# %% [markdown]
# ## Heavy tails: residuals
#
# First set: two states, with Student t noise of three degrees of freedom. The plain model has Gaussian states.

# %%
truth = models.HMM(
    nn.StudentTEmission(2, 1, loc=[[-1.2], [1.2]], scale=0.6, degrees=3.0), transition=nn.Transition(2, sticky=2.5)
)
heavy = truth.simulate(N, 100, seed=1)
gaussian = fitted(models.HMM(nn.GaussianEmission(2, 1)), heavy)

# %% [markdown]
# What would the residuals of a hidden Markov model be? Not "observation minus mean": the state is unknown, and the law
# of an observation is a mixture. The **pseudo-residual** puts each observation on the scale of that law,
# $r_t = \Phi^{-1}(F(x_t \mid x_{<t}))$. If the model is right these are independent standard normal numbers, whatever
# the emission. A QQ plot shows whether they are normal; the band is where the model's own data stay, over the whole
# curve, 95 times of 100.

# %%
plain_residuals = checks.pseudo_residuals(gaussian, heavy, num_simulations=SIMULATIONS, seed=0, progress=False)
student = fitted(models.HMM(nn.StudentTEmission(2, 1)), heavy)
better_residuals = checks.pseudo_residuals(student, heavy, num_simulations=SIMULATIONS, seed=0, progress=False)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
plain_residuals.plot(axes[0]).set_title("Gaussian states")
better_residuals.plot(axes[1]).set_title("Student t states")
axes[1].label_outer()
plt.show()
print(plain_residuals)
print(better_residuals)

# %% [markdown]
# Both ends leave the band: there are more far-out observations than Gaussians make. The test that sees it is
# "kurtosis", the mean fourth power of the residuals. Its p-value is a rank among simulations, so the smallest that
# 199 simulations can give is 1/200.
#
# Does it matter? That depends on the use. Whoever asks how far the next observation may go must not take the Gaussian
# model. But the states are hardly affected here: since this is a simulation we know them, and can ask whether the
# posterior's 80 per cent are right 80 per cent of the time. Of both models they are, within what chance allows.

# %%
labelled = {"Gaussian": gaussian, "Student t": student}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
calibration = {}
for ax, (name, model) in zip(axes, labelled.items(), strict=True):
    model.align(heavy.labels, heavy)
    calibration[name] = checks.state_calibration(model, heavy, num_simulations=SIMULATIONS, seed=0)
    calibration[name].plot(ax).set_title(name)
axes[1].label_outer()
plt.show()
for name, found in calibration.items():
    print(name, found, sep=": ")

# %% [markdown]
# ## A state too few: residuals again
#
# Second set: three states, and a model of two. Three overlapping bumps look much like two wider ones, so the marginal
# law is nearly right. But residuals must also be **independent**, and a missing state makes neighbours alike: while
# the chain is in the state that the model lacks, all residuals lie on the same side.

# %%
truth = models.HMM(
    nn.GaussianEmission(3, 1, loc=[[-2.0], [0.0], [2.0]], scale=0.8), transition=nn.Transition(3, sticky=3.5)
)
three = truth.simulate(N, 100, seed=2)
residuals = {}
for k in (2, 3):
    model = fitted(models.HMM(nn.GaussianEmission(k, 1)), three)
    residuals[k] = checks.pseudo_residuals(model, three, num_simulations=SIMULATIONS, seed=0, progress=False)
    print(f"{k} states:", residuals[k], sep="\n")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for ax, (k, found) in zip(axes, residuals.items(), strict=True):
    r = found.normal[..., 0]
    lags = range(1, 9)
    ax.bar(lags, [(r[:, lag:] * r[:, :-lag]).mean() / r.square().mean() for lag in lags], color="0.6")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="lag", title=f"{k} states", ylabel="correlation of residuals" if k == 2 else "")
plt.show()

# %% [markdown]
# ## Visits that last too long: predictive checks
#
# Third set: two states that one stays in for a while, hardly ever for one step or two. A Markov chain cannot do that:
# the time it stays is geometric, and one step is always the most probable.
#
# It can with more states. Let each of the two be a row of four sub-states that emit the same, passed from left to
# right: the time to get through is a sum of four geometric ones. Eight states in a ring, `nn.left_to_right(8,
# cyclic=True)`, and a `TiedEmission` with two rows.


# %%
def with_durations():
    """Two states of four sub-states each."""
    return models.HMM(
        nn.TiedEmission(nn.GaussianEmission(2, 1, loc=[[-1.5], [1.5]]), [0, 0, 0, 0, 1, 1, 1, 1]),
        transition=nn.Transition(8, mask=nn.left_to_right(8, cyclic=True), sticky=0.0),
    )


truth = with_durations()  # in each sub-state one stays, or goes on, with probability of about 1/2: 8 steps in the mean
long = truth.simulate(N, 100, seed=3)
plain = fitted(models.HMM(nn.GaussianEmission(2, 1)), long)
print(checks.pseudo_residuals(plain, long, num_simulations=SIMULATIONS, seed=0, progress=False))

checks.plot_series(long[:1], plain.posterior(long[:1]), state_names=["low", "high"])
plt.show()

# %% [markdown]
# The distribution of the residuals is fine: one step ahead little depends on how long a visit has lasted. Their
# autocorrelation says that something is wrong with time, but not what. A **posterior predictive check** asks for the
# thing itself. Take any statistic of the data and their states: compute it for the data, with states drawn from their
# posterior, and for data that the model makes. Do they agree?

# %%
found = checks.posterior_predictive_check(plain, long, num_draws=20 if SMOKE else 200, seed=0, progress=False)
for name, check in found.items():
    print(f"{name:20} p = {check.overall:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
found["dwell times"].plot(axes[0]).set_title("dwell times")
found["marginal quantiles"].plot(axes[1]).set_title("marginal quantiles")
plt.show()

# %% [markdown]
# Entry "0, 4" is the share of the visits to state 0 that last five steps ("0, 9": ten or more). The data's visits are
# short less often than the model's, and of middle length more often. The quantiles, to which the model was fitted in
# effect, say nothing.
#
# The better model has eight states. Its dwell times are those of groups of four, so we need a statistic of our own,
# which is an ordinary function of `Sequences`.


# %%
def dwell_times(data):
    """Those of the two states, whatever the sub-state."""
    labels = torch.where(data.labels < 0, -1, data.labels // 4)
    return checks.dwell_times(pyrohmm.data.Sequences(data.x, data.lengths, labels=labels), 2)


durations = fitted(with_durations(), long)
better = checks.posterior_predictive_check(
    durations, long, {"dwell times": dwell_times}, num_draws=20 if SMOKE else 200, seed=0, progress=False
)["dwell times"]

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
better.plot(axes)
plt.show()
score = {"geometric": plain.log_prob(long).sum().item(), "with durations": durations.log_prob(long).sum().item()}
print(score)

# %% [markdown]
# ## How to go about it
#
# 1. Residuals first, one step ahead: they need no idea of what may be wrong. Look at the QQ plot for the emission, at
#    their correlation for the dynamics.
# 2. Then statistics of what you will use the model for: dwell times, extremes, daily sums.
# 3. With parameters fitted to the same data, p-values are too large rather than too small. A small one means something;
#    a large one is no proof. `pseudo_residuals(refit=)` fits every simulated set too, and mends that.
# 4. Many checks, some small p-values by chance: mind how many you made.
#
# ## What was shown

# %%
if not SMOKE:
    assert plain_residuals.tests["kurtosis"].p_value <= 0.01 < 0.05 < better_residuals.tests["kurtosis"].p_value
    assert all(found.p_value > 0.05 for found in calibration.values())
    assert residuals[2].tests["autocorrelation"].p_value <= 0.01
    assert all(test.p_value > 0.05 for test in residuals[3].tests.values())
    assert found["dwell times"].overall <= 0.01 < 0.05 < found["marginal quantiles"].overall
    assert better.overall > 0.05
    assert score["with durations"] > score["geometric"] + 10
