"""Variational Bayes with closed-form updates."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain
from pyrohmm.infer.common import check_counts, check_sequences, check_tolerance, interrupts_between_steps, mode
from pyrohmm.infer.expectation import expect
from pyrohmm.infer.history import History
from pyrohmm.infer.initialization import Method, starts
from pyrohmm.infer.maximization import PARTS, accumulate, collect
from pyrohmm.infer.supply import Supply
from pyrohmm.models import HMM
from pyrohmm.models.hmm import Potentials
from pyrohmm.models.isolation import seeded
from pyrohmm.nn.part import Part, Statistics


def fit_vb(
    model: HMM,
    data: Sequences,
    *,
    steps: int = 100,
    tolerance: float = 1e-6,
    restarts: int = 1,
    initialization: Method | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> "VariationalPosterior":
    r"""Find the posterior over the parameters of a model by variational Bayes, with closed-form updates.

    The posterior of parameters and state paths is approximated by a product q(theta) q(z), the one that makes the bound

    .. math:: L = \mathrm{E}_q[\log p(x, z \mid \theta)] + \mathrm{H}[q(z)] - \mathrm{KL}(q(\theta) \,\|\, p(\theta))
        \le \log p(x)

    largest, by turns: each step updates q(theta) by the expected statistics of q(z), and then finds q(z) by
    forward-backward on the expected log-probabilities. The bound never falls (but for the rounding of the model's
    dtype), and a state that is not needed loses its data to others, the more so the sparser the priors.

    Parts and their priors (`prior=`): `nn.Initial` and `nn.Transition` (Dirichlet, also sticky),
    `nn.CategoricalEmission` (Dirichlet), `nn.BernoulliEmission` (Beta), `nn.PoissonEmission` (Gamma),
    `nn.GaussianEmission` (`nn.NormalInverseGamma` for "diag" and "spherical", `nn.NormalInverseWishart` for "full" and
    "tied").
    Probabilities without a prior have a flat one; rates and Gaussians need one. Parts whose parameters have
    `requires_grad` off are known. Masks of edges, labels (with `use_labels`), `data.allowed` and what is missing are
    honoured, but "full" and "tied" need steps that were observed in whole or not at all.

    Ctrl-C ends the fit after the present step as if its steps were done.

    Args:
        model: a `pyrohmm.models.HMM`. The first q(z) is the posterior under its parameters; at the end they are the
            posterior means.
        data: the sequences (a subset of a larger set counts on its own).
        steps: the largest number of updates.
        tolerance: the fit ends once a step changes the bound by less than this, in nats for each observed time step;
            0 for all steps, whatever they change.
        restarts: number of fits from different starts, of which the one with the best bound is kept; see `fit_em`.
        initialization: how emissions are set at the start, see `pyrohmm.infer.initialize`: "kmeans", "random", or None
            to start from the model's parameters.
        batch_size: sequences in memory at once, in the recursions. The result is the same.
        seed: of the starts.
        progress: whether to show a progress bar.

    Returns:
        `VariationalPosterior`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, nothing is observed, a part has no
            conjugate prior or is frozen in part, or a sequence is impossible under the model.
        FloatingPointError: the bound is NaN.

    Reference:
        MacKay (1997), "Ensemble learning for hidden Markov models"; Beal (2003), "Variational algorithms for
        approximate Bayesian inference", chapter 3.

    Example:
        >>> from pyrohmm.nn import GaussianEmission, NormalInverseGamma
        >>> data = HMM(GaussianEmission(2, 1, loc=[[-2.0], [2.0]])).simulate(20, 50, seed=0)
        >>> model = HMM(GaussianEmission(2, 1, prior=NormalInverseGamma(0.0, 0.1, 2.0, 1.0)))
        >>> found = fit_vb(model, data, initialization="kmeans", progress=False)
        >>> sorted(found.emission.loc.flatten().round().tolist()), found.transition.concentration.shape
        ([-2.0, 2.0], torch.Size([2, 2]))
        >>> found.emission.mean.stddev.max() < 0.1  # of the mean of each state
        tensor(True)
    """
    if not isinstance(model, HMM):
        raise TypeError(f"model: expected a pyrohmm.models.HMM, got {type(model).__name__}")
    check_sequences("data", data)
    check_counts(steps=steps, restarts=restarts, batch_size=batch_size)
    check_tolerance(tolerance)
    # Before anything is changed.
    for name, part in _learned(model).items():
        _conjugate_prior(name, part)
    if data.entries is not None and getattr(model.emission, "covariance", None) in ("full", "tied"):
        raise ValueError(
            f"data: expected steps observed in whole or not at all with covariance={model.emission.covariance!r}, "
            "got single entries that are missing"
        )
    supply = Supply(data, batch_size, model._check)
    began = time.perf_counter()
    # Copies, so that a fit that fails leaves the model as it was.
    models = starts(copy.deepcopy(model), supply.first, restarts, initialization, seed)
    fits = [_Fit(some, supply, tolerance, whole=batch_size is None) for some in models]
    interrupted = False
    with (
        torch.no_grad(),
        interrupts_between_steps() as interrupt,
        mode(models, training=False),
        tqdm(total=steps * restarts, desc="VB", disable=not progress) as bar,
    ):
        try:
            for fit in fits:
                while fit.advance(steps):
                    bar.set_postfix({"bound": f"{fit.bounds[-1]:.4f}"}, refresh=False)
                    bar.update()
                    interrupt.check()
        except KeyboardInterrupt:
            interrupted = True
    done = [fit for fit in fits if fit.bounds]
    if not done:
        raise KeyboardInterrupt("interrupted before the first step")
    best = max(done, key=lambda fit: fit.bounds[-1])
    history = History(
        loss=[-bound / supply.num_observed for bound in best.bounds],
        stop_reason="interrupted" if interrupted else "converged" if best.converged else "finished",
        seconds=time.perf_counter() - began,
        restarts=[-fit.bounds[-1] / supply.num_observed for fit in done],
    )
    found = VariationalPosterior(best.model, best.laws, best.gaps, best.bounds, history)
    model.load_state_dict(found.mean().state_dict())
    return found


class VariationalPosterior:
    r"""What `pyrohmm.fit_vb` found: the law q(theta) of the parameters.

    Attributes:
        history: the `History` of the fit: `loss` is minus the bound after each step, in nats for each observed time
            step, of the best restart; `restarts` has the last of each.
        lower_bounds: the bound on log p(x) after each step, in nats; it never falls.

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> data = Sequences.from_list([[0, 0, 1, 2, 2, 2, 2], [2, 0, 0]])
        >>> found = fit_vb(HMM(CategoricalEmission(2, 3)), data, progress=False)
        >>> found.emission  # of the probabilities of the symbols
        Dirichlet(concentration: torch.Size([2, 3]))
        >>> found.posterior(data).marginals.shape, found.log_prob(data).shape
        (torch.Size([2, 7, 2]), torch.Size([2]))
        >>> found.sample(seed=0).log_prob(data).shape  # of a model with parameters that were drawn
        torch.Size([2])
    """

    def __init__(
        self,
        model: HMM,
        laws: dict[str, Any],
        gaps: dict[str, Tensor],
        lower_bounds: list[float],
        history: History,
    ):
        # With the parameters at which potentials are the expected ones, but for the gaps.
        self._model, self._laws, self._gaps = model, laws, gaps
        self.lower_bounds, self.history = lower_bounds, history

    def __repr__(self) -> str:
        return f"VariationalPosterior({self.history.num_steps} steps, bound {self.lower_bound:.6g} nats)"

    @property
    def lower_bound(self) -> float:
        """The bound on log p(x) after the last step, in nats."""
        return self.lower_bounds[-1]

    @property
    def initial(self) -> Any:
        """The law of the probabilities of the first state, `Dirichlet` (K,); None if they are known.

        Concentrations are 0 where a mask forbids a state.
        """
        return self._law("initial")

    @property
    def transition(self) -> Any:
        """The law of the rows of transition probabilities, `Dirichlet` (K, K); None if they are known.

        Concentrations are 0 where a mask forbids an edge.
        """
        return self._law("transition")

    @property
    def emission(self) -> Any:
        """The law of the parameters of the emission; None if they are known.

        `Dirichlet` (K, V) of symbols, `Beta` (K, D) of bits, `Gamma` (K, D) of rates; of Gaussians
        `nn.NormalInverseGamma` or `nn.NormalInverseWishart`, whose attributes `mean` and `precision` are laws too.
        """
        return self._law("emission")

    def _law(self, name: str) -> Any:
        return self._laws[name].law if name in self._laws else None

    def posterior(self, data: Sequences) -> MarkovChain:
        """The law q(z) of the state paths of sequences, of batch shape (N,), given q(theta).

        Args:
            data: N sequences, those of the fit or others.
        """
        potentials = expected_potentials(self._model, self._gaps, data)
        return MarkovChain.from_potentials(*potentials, lengths=data.lengths)

    def log_prob(self, data: Sequences) -> Tensor:
        r"""A lower bound on the predictive log-probability of new sequences, each on its own, in nats.

        .. math:: \max_{q(z)} \mathrm{E}_{q(\theta) q(z)}[\log p(x, z \mid \theta) - \log q(z)]
            \le \log \mathrm{E}_{q(\theta)}\, p(x \mid \theta)

        Args:
            data: N sequences.

        Returns:
            (N,); -inf for a sequence that is impossible.
        """
        return expect(expected_potentials(self._model, self._gaps, data), data.lengths)[0]

    def mean(self) -> HMM:
        """A model with the mean parameters: probabilities, rates, means, and the inverses of the mean precisions."""
        return self._with(lambda law: law.mean())

    def sample(self, seed: int = 0) -> HMM:
        """A model with parameters drawn from q(theta).

        Args:
            seed: of the draw; torch's random state is not touched.
        """
        with seeded(seed, next(self._model.parameters()).device):
            return self._with(lambda law: law.sample())

    def _with(self, values: Callable[[Any], dict[str, Tensor]]) -> HMM:
        model = copy.deepcopy(self._model)
        for name, law in self._laws.items():
            getattr(model, name).put(values(law))
        return model


def expected_potentials(model: HMM, gaps: dict[str, Tensor], data: Sequences, products: Any = None) -> Potentials:
    """The mean log-potentials under q(theta), of a model at the mean natural parameters.

    Args:
        model: the model.
        gaps: of its parts, see `pyrohmm.nn._conjugate`.
        data: N sequences.
        products: see `HMM.potentials`.
    """
    with torch.no_grad():
        initial, transition, observation = model.potentials(data, products=products)
        if "initial" in gaps:
            initial = initial + gaps["initial"].to(initial)
        if "transition" in gaps:
            transition = transition + gaps["transition"].to(transition).unsqueeze(-1)
        if "emission" in gaps:
            gap, seen = gaps["emission"].to(observation), data.observed.to(observation.dtype)
            if data.entries is not None:
                observation = observation + data.entries.to(observation) @ gap.mT
            else:
                observation = observation + seen.unsqueeze(-1) * (gap.sum(-1) if gap.dim() == 2 else gap)
    return Potentials(initial, transition, observation)


def _learned(model: HMM) -> dict[str, Any]:
    """The parts that have parameters to learn."""
    parts = dict(zip(PARTS, model.parts, strict=True))
    return {name: part for name, part in parts.items() if any(p.requires_grad for p in part.parameters())}


def _conjugate_prior(name: str, part: Any) -> Any:
    """That of a part, with errors that name it."""
    if not isinstance(part, Part):
        raise TypeError(f"model.{name}: expected a part with a conjugate prior, got {type(part).__name__}")
    if not all(parameter.requires_grad for parameter in part.parameters()):
        raise ValueError(f"model.{name}: expected all its parameters to be trainable, or none, got some")
    try:
        return part.conjugate_prior()
    except (TypeError, ValueError) as error:
        raise type(error)(f"model.{name}: {error}") from None


class _Fit:
    """One fit: the laws of the parts, and the bound after each step."""

    def __init__(self, model: HMM, supply: Supply, tolerance: float, *, whole: bool):
        self.model, self.supply, self.tolerance = model, supply, tolerance
        self.priors = {name: _conjugate_prior(name, part) for name, part in _learned(model).items()}
        self.laws: dict[str, Any] = {}
        self.gaps: dict[str, Tensor] = {}
        self.bounds: list[float] = []
        self.statistics: dict[str, Statistics] = {}
        first, make = supply.first, getattr(model.emission, "products", None)
        self.products = None
        if whole and first.entries is None and make is not None:
            self.products = make(first.x.flatten(0, 1), first.observed.flatten())

    @property
    def converged(self) -> bool:
        """Whether the last step changed the bound by less than the tolerance."""
        if self.tolerance == 0 or len(self.bounds) < 2:
            return False
        return abs(self.bounds[-1] - self.bounds[-2]) < self.tolerance * self.supply.num_observed

    def advance(self, steps: int) -> bool:
        """Make a step unless there were as many, or the fit has converged; whether one was made."""
        if len(self.bounds) >= steps or self.converged:
            return False
        if not self.bounds:
            self._expect()  # under the parameters of the start
        laws = {name: prior.updated(self.statistics.get(name, {})) for name, prior in self.priors.items()}
        gaps = {}
        for name, law in laws.items():
            values, gaps[name] = law.expected()
            getattr(self.model, name).put(values)
        self.laws, self.gaps = laws, gaps
        log_z = self._expect()
        self.bounds.append(log_z - sum(law.divergence(self.priors[name]).item() for name, law in laws.items()))
        if math.isnan(self.bounds[-1]):
            raise FloatingPointError(f"step {len(self.bounds)}: the bound is NaN; check the priors")
        return True

    def _expect(self) -> float:
        """The log-partition of all sequences; their statistics are kept."""
        self.statistics, total = {}, 0.0
        for batch in self.supply:
            potentials = expected_potentials(self.model, self.gaps, batch, self.products)
            value, weights = expect(potentials, batch.lengths)
            if (impossible := value == -torch.inf).any():
                raise ValueError(
                    "data: expected sequences that are possible under the model, got impossible ones at "
                    f"{batch.index[impossible].tolist()[:10]} (a mask of states or edges, labels, allowed)"
                )
            total += value.double().sum().item()
            accumulate(self.statistics, collect(self.model, list(self.priors), batch, weights, self.products))
        return total
