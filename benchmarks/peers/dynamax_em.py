"""dynamax's `fit_em`: JAX, compiled, vmap over sequences, float32.

Its priors are replaced by ones that leave maximum likelihood: that of diagonal Gaussians by an improper one, of which
nothing is left in the M-step; the Dirichlet laws by concentrations of one and a little, since at one exactly its mode
is NaN once an expected count is lost in rounding, 1 + 1e-8 = 1 in float32. An inverse Wishart law with as few degrees
of freedom as that would need is refused, so full covariances have their M-step here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from dynamax.hidden_markov_model import CategoricalHMM, DiagonalGaussianHMM, GaussianHMM
from dynamax.hidden_markov_model.models.gaussian_hmm import GaussianHMMEmissions

from benchmarks.fit import Start
from benchmarks.problem import Job

_FLAT = 1 + 1e-4


def prepare(start: Start) -> Job:
    """Set a fit up as its users call it; it compiles its steps in each call."""
    return _job(start, compiled=False)


def prepare_compiled(start: Start) -> Job:
    """Set a fit up that is compiled as a whole by the first run, once for all calls."""
    return _job(start, compiled=True)


def _job(start: Start, compiled: bool) -> Job:
    model, params, props = model_at(start)
    x = jnp.asarray(start.x.reshape(*start.x.shape[:2], -1).numpy())
    x = x if start.probs is not None else x.astype(jnp.float32)

    def fit(params, x):
        return model.fit_em(params, props, x, num_iters=start.task.iterations, verbose=False)

    run = jax.jit(fit) if compiled else fit
    return Job(
        lambda: jax.block_until_ready(run(params, x)),
        lambda result: {"log_likelihood": torch.from_numpy(np.array(result[1]))},
    )


def model_at(start: Start, concentration: float = _FLAT):
    """Its model, with the parameters of the start, and their properties."""
    emission, K, size, *_ = start.task
    laws = {"initial_probs_concentration": concentration, "transition_matrix_concentration": concentration}
    chain = {"initial_probs": _array(start.initial), "transition_matrix": _array(start.transition)}
    match emission:
        case "categorical":
            model = CategoricalHMM(K, 1, size, **laws, emission_prior_concentration=concentration)
            own = {"emission_probs": _array(start.probs).reshape(K, 1, size)}
        case "diag":
            # The M-step's variance is scale / (n / 2 + concentration + 3 / 2).
            model = DiagonalGaussianHMM(
                *(K, size),
                **laws,
                emission_prior_mean_concentration=0.0,
                emission_prior_concentration=-1.5,
                emission_prior_scale=0.0,
            )
            own = {"emission_means": _array(start.loc), "emission_scale_diags": _array(start.scale)}
        case "full":
            model = GaussianHMM(K, size, **laws)
            model.emission_component = _MaximumLikelihood(K, size)
            own = {
                "emission_means": _array(start.loc),
                "emission_covariances": _array(start.scale.square().diag_embed()),
            }
    # The density of an improper prior is NaN; what `fit_em` returns is then the log-likelihood alone.
    model.log_prior = lambda params: 0.0
    return model, *model.initialize(**chain, **own)


class _MaximumLikelihood(GaussianHMMEmissions):
    """The M-step without a prior."""

    def m_step(self, params, props, batch_stats, m_step_state):
        weight, first, second = (batch_stats[name].sum(0) for name in ("sum_w", "sum_x", "sum_xxT"))
        means = first / weight[:, None]
        covs = second / weight[:, None, None] - means[:, :, None] * means[:, None, :]
        return params._replace(means=means, covs=covs), m_step_state


def _array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.numpy(), dtype=float)
