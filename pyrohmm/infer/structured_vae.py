"""Where the fit of a structured variational autoencoder begins."""

import copy

import torch

from pyrohmm.data import Sequences
from pyrohmm.infer.common import check_counts, check_positive, check_seed, check_sequences
from pyrohmm.infer.em import fit_em
from pyrohmm.infer.history import History
from pyrohmm.infer.svi import fit_svi
from pyrohmm.models import HMM, StructuredVAE
from pyrohmm.models.isolation import own_parameters
from pyrohmm.nn import GaussianEmission

# Of the KL term. With all of it the networks often ignore the codes, where these have no states yet.
_KL_WEIGHT = 0.1


def initialize_structured_vae(
    model: StructuredVAE,
    data: Sequences,
    *,
    restarts: int = 10,
    steps: int = 100,
    network_steps: int = 300,
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> History:
    r"""Set a structured variational autoencoder to a start from which `fit_svi` finds the states.

    1. The networks: those of an autoencoder without states, :math:`h_t \sim N(0, I)`, by `fit_svi`, with a tenth of the
       KL term.
    2. The states: a hidden Markov model of the codes, the means of its q(h), by `fit_em`; the best of several starts,
       from clusters of the codes.

    From laws of the codes that were drawn at random, a fit often gives one state to several that differ: the decoder
    learns to tell them apart before the laws do.

    Args:
        model: changed in place. The emission of its codes has a closed M-step, as `pyrohmm.nn.GaussianEmission`.
        data: the sequences to be fitted.
        restarts: starts of the second step.
        steps: of EM, at most.
        network_steps: of the first step.
        batch_size: sequences in each of these; all if None.
        learning_rate: of these, as for `fit_svi`.
        seed: of all that is random; torch's global random numbers stay as they are.
        progress: whether to show progress bars.

    Returns:
        The history of the second step.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or the data does not fit the model.

    Reference:
        The first step is that of Kingma and Welling (2014), "Auto-encoding variational Bayes", with the weight of
        Higgins et al. (2017), "beta-VAE".

    Example:
        >>> from pyrohmm.nn import NeuralEmission, StepEncoder
        >>> net = torch.nn.Sequential(torch.nn.Linear(1 + 2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2 * 5))
        >>> decoder = NeuralEmission(1, net, "gaussian", context=2)
        >>> model = StructuredVAE(GaussianEmission(3, 2, "full"), decoder, StepEncoder(5, 16))
        >>> data = model.simulate(10, 20, seed=0)
        >>> history = initialize_structured_vae(model, data, restarts=2, network_steps=20)
        >>> history.num_steps > 1, model.posterior(data).marginals.shape
        (True, torch.Size([10, 20, 3]))
    """
    if not isinstance(model, StructuredVAE):
        raise TypeError(f"model: expected a pyrohmm.models.StructuredVAE, got {type(model).__name__}")
    check_sequences("data", data)
    check_counts(restarts=restarts, steps=steps, network_steps=network_steps, batch_size=batch_size)
    check_positive(learning_rate=learning_rate)
    check_seed(seed)
    model._check(data)
    emission = model.hmm.emission
    if not getattr(emission, "closed_form", False):
        raise ValueError(
            f"model: expected an emission with a closed M-step, as GaussianEmission, got {type(emission).__name__}"
        )
    plain = _without_states(model)
    fit_svi(
        plain,
        data,
        steps=network_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        annealing=lambda step: _KL_WEIGHT,
        seed=seed,
        progress=progress,
    )
    for name in ("decoder", "encoder", "head"):
        getattr(model, name).load_state_dict(getattr(plain, name).state_dict())
    with torch.no_grad(), own_parameters(plain.eval()):
        codes = plain.infer(data).codes.mean
    return fit_em(
        model.hmm,
        Sequences(codes, data.lengths, inputs=data.inputs, mask=data.observed),
        steps=steps,
        restarts=restarts,
        initialization="kmeans",
        seed=seed,
        progress=progress,
    )


def _without_states(model: StructuredVAE) -> StructuredVAE:
    """A copy with one state, of the standard normal law, which stays."""
    plain = copy.deepcopy(model)
    law = GaussianEmission(1, model.dim, loc=torch.zeros(1, model.dim))
    plain.hmm = HMM(law, generator=torch.Generator()).to(model.head.weight).requires_grad_(False)
    plain.num_rounds, plain.collapsed = 1, True
    return plain
