"""A scikit-learn estimator for hidden Markov models: stacked sequences and their lengths in, numpy arrays out.

Needs scikit-learn, the extra `pyrohmm[sklearn]`; `import pyrohmm` alone does not import this module.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.infer import criteria, fit_em
from pyrohmm.infer.expectation import Assignment
from pyrohmm.infer.initialization import Method
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters, seeded

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("pyrohmm.sklearn needs scikit-learn: pip install 'pyrohmm[sklearn]'") from error

Make = Callable[..., torch.nn.Module]

# What not every fit sets.
_FITTED = {"means_", "covars_", "lambdas_", "emissionprob_"}


class HMMEstimator(BaseEstimator):
    """A hidden Markov model, fitted by expectation maximisation, with the methods of scikit-learn.

    X is an array (n, D) of steps, those of one sequence after those of another, and `lengths` (N,) says how many steps
    each sequence has; without it all steps are one sequence. NaN is a missing entry. Everything beyond these methods
    (filtering, forecasts, k best paths, other fits) is in the model itself, `model_`, a `pyrohmm.models.HMM`.

    Steps of a sequence depend on each other, so tools of scikit-learn that take out or shuffle rows do not fit: choose
    the number of states by `aic`, `bic` or `pyrohmm.select_states`.

    Args:
        num_states: K.
        emission: "gaussian", "poisson" (counts), "bernoulli" (0 or 1) or "categorical" (one column of symbols 0, 1,
            ...; there are as many as the largest one in `fit` says), or a function that makes a part like those of
            `pyrohmm.nn` from K and D.
        covariance: of "gaussian": "diag", "full", "tied" or "spherical".
        initial: a function that makes the law of the first state from K. Default: `pyrohmm.nn.Initial`.
        transition: a function that makes the law of the next state from K, for example with a prior or a mask. Default:
            `pyrohmm.nn.Transition`.
        steps: the largest number of EM steps.
        tolerance: EM ends once a step changes the objective by less than this, in nats for each observed row.
        restarts: number of fits from different starts, of which the best is kept.
        initialization: "kmeans", "random", or None to start from the emission as it was made (networks must).
        assignment: "soft" for EM, "hard" for Viterbi training.
        dtype: of the parameters and recursions, "float64" or "float32".
        random_state: an int for the same numbers each time, a numpy `RandomState`, or None for numpy's global one.
        progress: whether to show a progress bar.

    Attributes:
        model_: the fitted `pyrohmm.models.HMM`.
        history_: the `pyrohmm.History` of the fit.
        converged_: whether it ended by the tolerance.
        n_iter_: number of EM steps.
        startprob_: (K,), p(z_1 = k).
        transmat_: (K, K), p(z_{t+1} = j | z_t = i) at [i, j].
        means_: (K, D), of "gaussian".
        covars_: (K, D, D), of "gaussian", whatever the `covariance`.
        lambdas_: (K, D), rates of "poisson".
        emissionprob_: (K, V) of "categorical"; (K, D), the probabilities of a 1, of "bernoulli".
        n_features_in_: D.
        feature_names_in_: (D,), names of the columns, where X is a data frame with names.

    Raises:
        ValueError, TypeError: in the methods: X is not an array (n, D) of numbers with the D of the fit, or not what
            the emission emits, `lengths` do not add up to n, a setting is of another kind; see `pyrohmm.fit_em`.
        sklearn.exceptions.NotFittedError: a method but `fit` comes first.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(m, 1.0, (50, 2)) for m in (-3.0, 3.0, -3.0)])
        >>> estimator = HMMEstimator(2, random_state=0).fit(X, lengths=[100, 50])
        >>> states = estimator.predict(X, [100, 50])
        >>> states.shape, len(np.unique(states[:50])), bool(states[0] == states[-1])
        ((150,), 1, True)
        >>> estimator.means_.round().astype(int)[[states[0], states[50]]].tolist()
        [[-3, -3], [3, 3]]
        >>> estimator.sample(5, random_state=0)[0].shape
        (5, 2)
    """

    model_: HMM
    covariance: Literal["diag", "full", "tied", "spherical"]
    initialization: Method | None
    assignment: Assignment

    def __init__(
        self,
        num_states: int = 2,
        emission: str | Make = "gaussian",
        *,
        covariance: Literal["diag", "full", "tied", "spherical"] = "diag",
        initial: Make | None = None,
        transition: Make | None = None,
        steps: int = 100,
        tolerance: float = 1e-6,
        restarts: int = 1,
        initialization: Method | None = "kmeans",
        assignment: Assignment = "soft",
        dtype: Literal["float64", "float32"] = "float64",
        random_state: Any = None,
        progress: bool = False,
    ):
        self.num_states = num_states
        self.emission = emission
        self.covariance = covariance
        self.initial = initial
        self.transition = transition
        self.steps = steps
        self.tolerance = tolerance
        self.restarts = restarts
        self.initialization = initialization
        self.assignment = assignment
        self.dtype = dtype
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike, y: Any = None, lengths: ArrayLike | None = None) -> Self:
        """Fit a new model by expectation maximisation.

        Args:
            X: (n, D).
            y: one value a row, not read: for pipelines. Anything shorter is taken for `lengths`, which other libraries
                have in this place.
            lengths: (N,), adding up to n. Default: one sequence.
        """
        rows = self._validate(X, reset=True)
        # What an earlier fit has left may be of another emission.
        for name in _FITTED & vars(self).keys():
            delattr(self, name)
        seed = _seed(self.random_state)
        # Parts that are made by functions draw from torch's global generator.
        with seeded(seed, torch.device("cpu")):
            self.model_ = self._make(rows)
        data = self._sequences(rows, _lengths(len(rows), y, lengths))
        self.history_ = fit_em(
            self.model_,
            data,
            steps=self.steps,
            tolerance=self.tolerance,
            restarts=self.restarts,
            initialization=self.initialization,
            assignment=self.assignment,
            seed=seed,
            progress=self.progress,
        )
        self.converged_ = self.history_.stop_reason == "converged"
        self.n_iter_ = self.history_.num_steps
        for name, value in _tables(self.model_, data).items():
            setattr(self, name, value.numpy())
        return self

    def predict(self, X: ArrayLike, lengths: ArrayLike | None = None) -> np.ndarray:
        """The most probable path of states of each sequence (Viterbi).

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.

        Returns:
            (n,), int64.
        """
        return self.decode(X, lengths)[1]

    def decode(self, X: ArrayLike, lengths: ArrayLike | None = None) -> tuple[float, np.ndarray]:
        """The most probable paths, and log p(x, z) of them all together, in nats.

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.

        Returns:
            the log-probability, and the states (n,), int64.
        """
        data = self._read(X, lengths)
        with torch.no_grad():
            best = ops.viterbi(*self.model_.potentials(data), lengths=data.lengths)
        return float(best.log_prob.sum(dtype=torch.float64)), best.states[data.valid].numpy()

    def predict_proba(self, X: ArrayLike, lengths: ArrayLike | None = None) -> np.ndarray:
        """The probability of each state in each row, given all of its sequence (smoothing).

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.

        Returns:
            (n, K).
        """
        data = self._read(X, lengths)
        with torch.no_grad():
            found = ops.smooth(*self.model_.potentials(data), lengths=data.lengths)
        return found.state_marginals[data.valid].numpy()

    def score(self, X: ArrayLike, y: Any = None, lengths: ArrayLike | None = None) -> float:
        """The log-likelihood of all sequences together, in nats.

        Args:
            X: (n, D).
            y: as in `fit`.
            lengths: (N,), adding up to n. Default: one sequence.
        """
        return float(self._log_prob(self._read(X, lengths, y)).sum(dtype=torch.float64))

    def log_prob(self, X: ArrayLike, lengths: ArrayLike | None = None) -> np.ndarray:
        """The log-likelihood of each sequence, in nats.

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.

        Returns:
            (N,); -inf for a sequence that is impossible.
        """
        return self._log_prob(self._read(X, lengths)).numpy()

    def sample(self, num_steps: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw one sequence.

        Args:
            num_steps: T.
            random_state: as in the constructor, whose is used if it is None.

        Returns:
            X (T, D) and its states (T,), int64.
        """
        check_is_fitted(self)
        seed = _seed(self.random_state if random_state is None else random_state)
        drawn = self.model_.simulate(1, num_steps, seed=seed)
        assert drawn.labels is not None
        return drawn.x[0].reshape(num_steps, -1).numpy(), drawn.labels[0].numpy()

    def aic(self, X: ArrayLike, lengths: ArrayLike | None = None) -> float:
        """Akaike's criterion in nats, of the data of the fit; lower is better. See `pyrohmm.infer.criteria`.

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.
        """
        data = self._read(X, lengths)
        return criteria(self.model_, data).aic

    def bic(self, X: ArrayLike, lengths: ArrayLike | None = None) -> float:
        """Schwarz's criterion in nats, of the data of the fit; lower is better. See `pyrohmm.infer.criteria`.

        Args:
            X: (n, D).
            lengths: (N,), adding up to n. Default: one sequence.
        """
        data = self._read(X, lengths)
        return criteria(self.model_, data).bic

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.positive_only = self.emission in ("bernoulli", "categorical", "poisson")
        return tags

    def _make(self, X: np.ndarray) -> HMM:
        """The model before the fit."""
        num_states, dim = self.num_states, X.shape[1]
        if callable(self.emission):
            emission = self.emission(num_states, dim)
        elif self.emission == "gaussian":
            emission = nn.GaussianEmission(num_states, dim, self.covariance)
        elif self.emission == "poisson":
            emission = nn.PoissonEmission(num_states, dim)
        elif self.emission == "bernoulli":
            emission = nn.BernoulliEmission(num_states, dim)
        elif self.emission == "categorical":
            emission = nn.CategoricalEmission(num_states, 1 + int(np.nanmax(X, initial=0)))
        else:
            raise ValueError(
                "emission: expected 'gaussian', 'poisson', 'bernoulli', 'categorical' or a function, "
                f"got {self.emission!r}"
            )
        initial = None if self.initial is None else self.initial(num_states)
        transition = None if self.transition is None else self.transition(num_states)
        return HMM(emission, initial, transition).to(getattr(torch, self.dtype))

    def _validate(self, X: Any, *, reset: bool) -> np.ndarray:
        """X as an array (n, D) of the dtype; its D is kept or compared."""
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype: expected 'float64' or 'float32', got {self.dtype!r}")
        rows: Any = validate_data(self, X, reset=reset, dtype=self.dtype, ensure_all_finite="allow-nan")
        return rows

    def _read(self, X: ArrayLike, lengths: ArrayLike | None, y: Any = None) -> Sequences:
        """New data, for the model that was fitted."""
        check_is_fitted(self)
        rows = self._validate(X, reset=False)
        return self._sequences(rows, _lengths(len(rows), y, lengths))

    def _sequences(self, X: np.ndarray, lengths: list[int]) -> Sequences:
        emission = self.model_.emission
        x = torch.tensor(X)
        observed = ~x.isnan()
        if len(emission.event_shape) == 0:
            if x.shape[1] != 1:
                raise ValueError(f"X: expected one column, like the emission's observations, got {x.shape[1]}")
            x = x[:, 0]
        if isinstance(emission, nn.CategoricalEmission):
            x = x.nan_to_num(0.0)
            wrong = (x < 0) | (x >= emission.logits.shape[-1]) | (x != x.floor())
            if wrong.any():
                raise ValueError(
                    f"X: expected symbols from 0 to {emission.logits.shape[-1] - 1}, the largest one in the fit, "
                    f"got {x[wrong][0].item()}"
                )
            x = x.long()
        mask = None if observed.all() else observed.reshape(x.shape).split(lengths)
        return Sequences.from_list(x.split(lengths), mask=mask, dtype=x.dtype)

    def _log_prob(self, data: Sequences) -> Tensor:
        with torch.no_grad():
            return self.model_.log_prob(data)


def _lengths(num_rows: int, y: Any, lengths: ArrayLike | None) -> list[int]:
    """The lengths as ints, which may have come as y."""
    if lengths is None and y is not None and np.size(y) != num_rows:
        lengths = y
    found = np.asarray([num_rows] if lengths is None else lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 1).any() or found.sum() != num_rows:
        raise ValueError(f"lengths: expected positive integers that add up to {num_rows}, the rows of X, got {lengths}")
    return found.tolist()


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _tables(model: HMM, data: Sequences) -> dict[str, Tensor]:
    """The parameters as one reads them."""
    with torch.no_grad(), own_parameters(model):
        initial, transition, _ = model.potentials(data, ["initial", "transition"])
        tables = {"startprob_": initial.exp(), "transmat_": transition.exp()}
        emission, states = model.emission, torch.arange(model.num_states)
        if isinstance(emission, nn.GaussianEmission):
            law: Any = emission(states)
            full = emission.covariance in ("full", "tied")
            tables["means_"] = law.mean
            tables["covars_"] = law.covariance_matrix if full else law.variance.diag_embed()
        elif isinstance(emission, nn.PoissonEmission):
            tables["lambdas_"] = emission(states).mean
        elif isinstance(emission, nn.BernoulliEmission):
            tables["emissionprob_"] = emission(states).mean
        elif isinstance(emission, nn.CategoricalEmission):
            tables["emissionprob_"] = emission.logits.softmax(-1)
    return tables
