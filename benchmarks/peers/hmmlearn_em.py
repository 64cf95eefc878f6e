"""hmmlearn's `fit`: float64, C++ recursions with one thread, in log space (its default) or scaled.

Its priors are switched off, so that the M-step is that of maximum likelihood: `covars_prior` 0 with `covars_weight` 1,
of which nothing is left in the denominator for any covariance; the other priors are flat by default. `min_covar` is
only of its own start, which is not used.
"""

from typing import Literal

import numpy as np
import torch
from hmmlearn.hmm import CategoricalHMM, GaussianHMM

from benchmarks.fit import Start
from benchmarks.problem import Job

# Seconds for each edge of each iteration, roughly, to leave out what would take minutes.
_SECONDS = {"log": 24e-9, "scaling": 8e-9}


def prepare_log(start: Start) -> Job:
    """Set a fit up in log space."""
    return _job(start, "log")


def prepare_scaling(start: Start) -> Job:
    """Set a fit up in scaled space."""
    return _job(start, "scaling")


def _job(start: Start, implementation: Literal["log", "scaling"]) -> Job:
    task = start.task
    x = start.x.reshape(task.batch * task.num_steps, -1).numpy()
    lengths = [task.num_steps] * task.batch

    def run() -> list[float]:
        model = model_at(start, implementation)
        model.fit(x, lengths)
        return list(model.monitor_.history)

    def read(history: list[float]) -> dict[str, torch.Tensor]:
        return {"log_likelihood": torch.tensor(history, dtype=torch.float64)}

    return Job(run, read, _SECONDS[implementation] * task.edges)


def model_at(start: Start, implementation: Literal["log", "scaling"] = "log"):
    """Its model with the parameters of the start."""
    task = start.task
    options = {
        "n_components": task.num_states,
        "n_iter": task.iterations,
        "tol": -np.inf,  # never converged
        "init_params": "",
        "implementation": implementation,
    }
    if start.probs is not None:
        model = CategoricalHMM(n_features=task.size, **options)
        model.emissionprob_ = start.probs.numpy()
    else:
        model = GaussianHMM(covariance_type=task.emission, covars_prior=0, covars_weight=1, **options)
        variance = start.scale.square()
        model.means_ = start.loc.numpy()
        model.covars_ = (variance if task.emission == "diag" else variance.diag_embed()).numpy()
    model.startprob_, model.transmat_ = start.initial.numpy(), start.transition.numpy()
    return model
