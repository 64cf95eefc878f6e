"""How well a model predicts for its size, and the choice of the number of states by that."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm import ops
from pyrohmm.data import Sequences
from pyrohmm.infer.common import check_sequences
from pyrohmm.infer.em import fit_em
from pyrohmm.models import HMM
from pyrohmm.models.isolation import seeded

Criterion = Literal["aic", "bic", "heldout"]


class Criteria(NamedTuple):
    """How well a model fits its data for its size; see `criteria`.

    Attributes:
        log_likelihood: of all sequences, nats.
        num_parameters: free ones.
        num_observed: observed steps, n.
        aic: Akaike's criterion, nats; lower is better.
        bic: Schwarz's criterion, nats; lower is better.
        per_step: log-likelihood for each observed step, nats.
    """

    log_likelihood: float
    num_parameters: int
    num_observed: int
    aic: float
    bic: float
    per_step: float


class PredictiveScore(NamedTuple):
    """How well each observation was predicted by those before; see `predictive_score`.

    Attributes:
        log_evidence: log p(x_t | x_1..t-1), (N, T), nats; 0 past the length and (to rounding) where x is missing.
        mean: over the observed steps, nats.
    """

    log_evidence: Tensor
    mean: float


def criteria(model: HMM, data: Sequences) -> Criteria:
    r"""Log-likelihood, AIC and BIC of a fitted model on the data that it was fitted to.

    .. math::
        \mathrm{AIC} = -2 \log p(x) + 2 p, \qquad \mathrm{BIC} = -2 \log p(x) + p \log n

    with p free parameters (`HMM.num_free_parameters`) and n observed steps, of all sequences together. That is the
    usual n for hidden Markov models; the theory behind BIC for them is not complete.

    Args:
        model: a model whose parameters have values, no priors.
        data: N sequences.

    Returns:
        `Criteria`. Where the model uses labels, the likelihood is that of observations and labels together.

    Raises:
        TypeError, ValueError: what is no model or no sequences, data without an observed step, parameters with priors.

    Reference:
        Akaike (1974), "A new look at the statistical model identification"; Schwarz (1978), "Estimating the dimension
        of a model".

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(1, 4, probs=[[1.0, 1.0, 1.0, 1.0]]))
        >>> found = criteria(model, Sequences.from_list([[0, 1, 2, 3], [0, 1]]))
        >>> round(found.log_likelihood, 3), found.num_parameters, round(found.aic, 3), round(found.bic, 3)
        (-8.318, 3, 22.636, 22.011)
    """
    _check(model, data)
    with torch.no_grad():
        log_likelihood = float(model.log_prob(data).sum(dtype=torch.float64))
    num_parameters, num_observed = model.num_free_parameters, data.num_observed
    return Criteria(
        log_likelihood,
        num_parameters,
        num_observed,
        aic=2 * num_parameters - 2 * log_likelihood,
        bic=num_parameters * math.log(num_observed) - 2 * log_likelihood,
        per_step=log_likelihood / num_observed,
    )


def predictive_score(model: HMM, data: Sequences) -> PredictiveScore:
    r"""The one-step-ahead predictive log-density of every observation: the prequential score.

    .. math:: \log p(x_t \mid x_{1:t-1}) = \log \sum_k p(z_t = k \mid x_{1:t-1})\; p(x_t \mid z_t = k)

    Over a sequence it adds up to its log-likelihood. On held-out sequences it is a proper score of a model.

    Args:
        model: a model whose parameters have values, no priors.
        data: N sequences.

    Returns:
        `PredictiveScore`.

    Raises:
        TypeError, ValueError: as for `criteria`.

    Reference:
        Dawid (1984), "Statistical theory: the prequential approach".

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(1, 4, probs=[[1.0, 1.0, 1.0, 1.0]]))
        >>> predictive_score(model, Sequences.from_list([[0, 1, 2], [0]])).log_evidence
        tensor([[-1.3863, -1.3863, -1.3863],
                [-1.3863,  0.0000,  0.0000]])
    """
    _check(model, data)
    with torch.no_grad():
        log_evidence = ops.filter(*model.potentials(data), lengths=data.lengths).log_evidence
    return PredictiveScore(log_evidence, float(log_evidence.sum(dtype=torch.float64)) / data.num_observed)


class SelectionRow(NamedTuple):
    """One number of states in the table of a selection; all but the sizes in nats.

    Attributes:
        num_states: K.
        log_likelihood: of the data that the model was fitted to.
        num_parameters: free ones.
        aic: lower is better.
        bic: lower is better.
        heldout: log-likelihood of held-out sequences for each observed step; higher is better. None without any.
        heldout_error: standard error of `heldout` by its spread over the folds; None without folds.
    """

    num_states: int
    log_likelihood: float
    num_parameters: int
    aic: float
    bic: float
    heldout: float | None
    heldout_error: float | None


class StateSelection(NamedTuple):
    """The result of `select_states`; `pyrohmm.checks.plot_selection` plots it, `print` shows the table.

    Attributes:
        rows: one for each number of states, in the order given.
        criterion: that by which `best` was chosen.
        best: the row of the best number of states.
        model: the model of that row, fitted to all of the data, in eval mode.
        num_observed: observed steps of the data.
    """

    rows: list[SelectionRow]
    criterion: Criterion
    best: SelectionRow
    model: HMM
    num_observed: int

    def __str__(self) -> str:
        head = ["states", "log-likelihood", "parameters", "AIC", "BIC", "held-out per step"]
        lines = [head]
        for row in self.rows:
            heldout = "" if row.heldout is None else f"{row.heldout:.4f}"
            heldout += "" if row.heldout_error is None else f" +- {row.heldout_error:.4f}"
            numbers = [f"{row.log_likelihood:.2f}", str(row.num_parameters), f"{row.aic:.2f}", f"{row.bic:.2f}"]
            lines.append([f"{row.num_states}{'*' if row is self.best else ''}", *numbers, heldout])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in table), f"* best by {self.criterion}"])


def select_states(
    build: Callable[[int], HMM],
    num_states: Iterable[int],
    data: Sequences,
    *,
    fit: Callable[[HMM, Sequences], Any] | None = None,
    criterion: Criterion = "bic",
    validation: Sequences | None = None,
    folds: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> StateSelection:
    """Fit models with different numbers of states, and choose among them.

    Held-out scores are those of the validation sequences, or of cross-validation: the sequences are dealt into folds
    at random, and each fold is scored by a model that was fitted to the others. The sum over all folds, divided by
    their observed steps, is the score.

    Every fit starts from the same random state, torch's own is left alone.

    Args:
        build: makes a model of K states, not fitted.
        num_states: the K to try, each at least 1.
        data: the sequences.
        fit: fits a model to sequences in place, e.g. `lambda model, data: pyrohmm.fit_svi(model, data, steps=500)`.
            Default: `fit_em` with 5 restarts.
        criterion: "aic", "bic" or "heldout". Of equals the smallest number of states is chosen.
        validation: held-out sequences; either these or folds.
        folds: number of folds of a cross-validation, from 2 to N.
        seed: of the folds, and of torch's random numbers in `build` and `fit`.
        progress: whether to show a progress bar.

    Returns:
        `StateSelection`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, "heldout" with nothing held out, or a
            model of another number of states than it was asked for.

    Reference:
        Celeux and Durand (2008), "Selecting hidden Markov model state number with cross-validated likelihood".

    Example:
        >>> from pyrohmm.nn import CategoricalEmission
        >>> data = Sequences.from_list([[0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]] * 5)
        >>> found = select_states(lambda k: HMM(CategoricalEmission(k, 2)), [1, 2], data, progress=False)
        >>> found.best.num_states, [row.num_parameters for row in found.rows]
        (2, [1, 5])
    """
    sizes = list(num_states)
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"num_states: expected ints of at least 1, got {size!r}")
    if not sizes:
        raise ValueError("num_states: expected at least one, got none")
    if fit is None:
        fit = partial(fit_em, restarts=5, seed=seed, progress=False)
    for name, function in (("build", build), ("fit", fit)):
        if not callable(function):
            raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
    if criterion not in ("aic", "bic", "heldout"):
        raise ValueError(f"criterion: expected 'aic', 'bic' or 'heldout', got {criterion!r}")
    check_sequences("data", data)
    if validation is not None:
        check_sequences("validation", validation)
    if validation is not None and folds is not None:
        raise ValueError("folds: expected None since there are validation sequences")
    if criterion == "heldout" and validation is None and folds is None:
        raise ValueError("criterion: 'heldout' expects validation sequences or folds, got neither")
    parts = [] if folds is None else _folds(data, folds, seed)

    with tqdm(total=len(sizes) * (1 + len(parts)), desc="select_states", disable=not progress) as bar:

        def fitted(size: int, train: Sequences) -> HMM:
            with seeded(seed, data.x.device):
                model = build(size)
                if not isinstance(model, HMM) or model.num_states != size:
                    got = f"{model.num_states} states" if isinstance(model, HMM) else type(model).__name__
                    raise ValueError(f"build: expected an HMM of {size} states, got {got}")
                fit(model, train)
            bar.update()
            return model.eval()

        rows, best, best_model = [], None, None
        for size in sizes:
            model = fitted(size, data)
            found, heldout, error = criteria(model, data), None, None
            if validation is not None:
                heldout = criteria(model, validation).per_step
            elif parts:
                scores = [criteria(fitted(size, train), test) for train, test in parts]
                heldout, error = _pooled(scores)
            row = SelectionRow(size, found.log_likelihood, found.num_parameters, found.aic, found.bic, heldout, error)
            rows.append(row)
            if best is None or _cost(row, criterion) < _cost(best, criterion):
                best, best_model = row, model
    assert best is not None and best_model is not None  # there is at least one size
    return StateSelection(rows, criterion, best, best_model, data.num_observed)


def _cost(row: SelectionRow, criterion: Criterion) -> tuple[float, int]:
    """What the best row has least of."""
    value = getattr(row, criterion)
    cost = -value if criterion == "heldout" else value
    return (math.inf if math.isnan(cost) else cost), row.num_states


def _folds(data: Sequences, folds: int, seed: int) -> list[tuple[Sequences, Sequences]]:
    """The sequences without each fold, and the fold, each as a set of its own."""
    if not isinstance(folds, int) or not 2 <= folds <= len(data):
        raise ValueError(f"folds: expected an int from 2 to the number of sequences, {len(data)}, got {folds!r}")
    fold = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)) % folds
    pairs = [(data[fold != i].as_whole().trim(), data[fold == i].as_whole().trim()) for i in range(folds)]
    for train, test in pairs:
        for part in (train, test):
            if part.num_observed == 0:
                raise ValueError(
                    f"folds: expected an observed step in every fold and beside it, got none in one of {folds}"
                )
    return pairs


def _pooled(scores: list[Criteria]) -> tuple[float, float]:
    """Log-likelihood for each observed step of all folds together, and its standard error."""
    steps = sum(score.num_observed for score in scores)
    mean = sum(score.log_likelihood for score in scores) / steps
    # Of a ratio of sums, by its linear approximation; folds differ in their number of steps.
    residuals = (score.log_likelihood - mean * score.num_observed for score in scores)
    num = len(scores)
    return mean, math.sqrt(num / (num - 1) * sum(residual**2 for residual in residuals)) / steps


def _check(model: Any, data: Any) -> None:
    if not isinstance(model, HMM):
        raise TypeError(f"model: expected an HMM, got {type(model).__name__}")
    check_sequences("data", data)
