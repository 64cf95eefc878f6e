import functools
import math

import numpy as np
import pytest
import torch

from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import criteria, fit_svi, predictive_score, select_states
from pyrohmm.models import HMM
from pyrohmm.testing import enumeration
from tests.models.cases import CASES, make

TINY = Sequences.from_list([[0, 0, 1], [1, 1], [0, 1, 1, 1], [1]])
fit = functools.partial(fit_svi, steps=3, progress=False)


def build(num_states: int) -> HMM:
    return HMM(nn.CategoricalEmission(num_states, 2))


select = functools.partial(select_states, fit=fit, progress=False)


# criteria


@pytest.mark.parametrize("name", CASES)
def test_criteria(name):
    model, data = make(name)
    found = criteria(model, data)
    total = model.log_prob(data).sum().item()
    assert found.log_likelihood == pytest.approx(total)
    assert found.num_parameters == model.num_free_parameters
    assert found.num_observed == data.num_observed == int(data.mask.sum())
    assert found.aic == pytest.approx(2 * model.num_free_parameters - 2 * total)
    assert found.bic == pytest.approx(math.log(data.num_observed) * model.num_free_parameters - 2 * total)
    assert found.per_step == pytest.approx(total / data.num_observed)


def test_impossible_data():
    model = HMM(nn.CategoricalEmission(1, 2))
    with torch.no_grad():
        model.emission.logits[0, 1] = -torch.inf
    found = criteria(model, Sequences.from_list([[0, 1]]))
    assert (found.log_likelihood, found.aic, found.bic) == (-math.inf, math.inf, math.inf)


# predictive_score


@pytest.mark.parametrize("name", CASES)
def test_predictive_score_adds_up_to_the_likelihood(name):
    model, data = make(name)
    score = predictive_score(model, data)
    assert score.log_evidence.shape == data.x.shape[:2]
    torch.testing.assert_close(score.log_evidence.sum(-1), model.log_prob(data).detach(), rtol=1e-10, atol=1e-10)
    assert (score.log_evidence[~data.valid] == 0).all()
    if name != "labels":
        assert score.log_evidence[~data.observed].abs().max() < 1e-10
    assert score.mean == pytest.approx(criteria(model, data).per_step)


def test_predictive_score_by_enumeration():
    model, data = make("gaussian")
    chain = [value.detach() for value in model.posterior(data).potentials]
    expected = enumeration.filter(*chain, lengths=data.lengths).log_evidence
    torch.testing.assert_close(predictive_score(model, data).log_evidence, expected, rtol=1e-10, atol=1e-10)


# select_states


def test_rows_are_the_criteria_of_the_fitted_models():
    fitted = []

    def remember(model: HMM, data: Sequences) -> None:
        fit(model, data)
        fitted.append(model)

    found = select(build, [2, 1, 3], TINY, fit=remember)
    assert [row.num_states for row in found.rows] == [2, 1, 3]
    for row, model in zip(found.rows, fitted, strict=True):
        expected = criteria(model, TINY)
        assert (row.log_likelihood, row.num_parameters) == (expected.log_likelihood, expected.num_parameters)
        assert (row.aic, row.bic, row.heldout, row.heldout_error) == (expected.aic, expected.bic, None, None)
    assert found.best is min(found.rows, key=lambda row: row.bic)
    assert found.model is fitted[found.rows.index(found.best)]
    assert found.num_observed == 10
    assert not found.model.training


@pytest.mark.parametrize("criterion", ["aic", "bic", "heldout"])
def test_recovers_the_number_of_states(criterion):
    truth = HMM(nn.GaussianEmission(2, 1, loc=[[-2.0], [2.0]], scale=0.5))
    data, validation = (truth.simulate(30, 15, seed=seed) for seed in (0, 1))
    found = select(
        lambda k: HMM(nn.GaussianEmission(k, 1, loc=[[-1.0], [1.0]][:k])),
        [1, 2],
        data,
        fit=functools.partial(fit_svi, steps=100, learning_rate=0.1, progress=False),
        criterion=criterion,
        validation=validation,
    )
    assert found.best.num_states == 2
    assert found.best.heldout == pytest.approx(criteria(found.model, validation).per_step)
    assert found.best.heldout_error is None
    assert found.rows[1].heldout > found.rows[0].heldout + 0.5


def test_cross_validation_scores_every_sequence_once_by_a_model_that_did_not_see_it():
    seen = []

    def count(model: HMM, data: Sequences) -> None:
        """Fits a single state to the symbols' frequencies, with one of each more."""
        counts = 1 + torch.bincount(data.x[data.observed], minlength=2).float()
        with torch.no_grad():
            model.emission.logits.copy_((counts / counts.sum()).log())
        seen.append(data)

    found = select(build, [1], TINY, fit=count, folds=2, criterion="heldout", seed=3)
    whole, *trained = seen
    assert len(whole) == 4
    assert [len(part) for part in trained] == [2, 2]
    symbols = sorted(tuple(x.tolist()) for part in trained for x in part.to_list())
    assert symbols == sorted(tuple(x.tolist()) for x in TINY.to_list())
    assert all(part.num_total == 2 for part in trained)

    def score(train: Sequences, test: Sequences) -> float:
        counts = 1 + np.bincount(torch.cat(train.to_list()).numpy(), minlength=2)
        return float(sum(np.log(counts[x] / counts.sum()) for x in torch.cat(test.to_list()).tolist()))

    total = [score(trained[0], trained[1]), score(trained[1], trained[0])]
    row = found.rows[0]
    assert row.heldout == pytest.approx(sum(total) / 10, rel=1e-5)
    sizes = np.array([trained[1].num_observed, trained[0].num_observed])
    residuals = np.array(total) - sum(total) / 10 * sizes
    assert row.heldout_error == pytest.approx(math.sqrt(2 * (residuals**2).sum()) / 10, rel=1e-4)


def test_ragged_and_missing_steps_count_as_observed_only():
    _, data = make("gaussian")
    found = select(lambda k: HMM(nn.GaussianEmission(k, 2)).double(), [1, 2], data, folds=2)
    assert found.num_observed == data.num_observed
    assert all(math.isfinite(row.heldout) for row in found.rows)


def test_same_seed_same_numbers_and_torchs_own_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = select(build, [1, 2], TINY, folds=2, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert first.rows == select(build, [1, 2], TINY, folds=2, seed=1).rows
    assert first.rows != select(build, [1, 2], TINY, folds=2, seed=2).rows


def test_of_equals_the_smallest_and_nothing_that_is_not_a_number():
    def same(model: HMM, data: Sequences) -> None:
        with torch.no_grad():
            model.emission.logits.fill_(float("nan") if model.num_states == 1 else 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HMM, "log_prob", lambda self, data: self.emission.logits.sum() + torch.zeros(len(data)))
        found = select(build, [1, 3, 2], TINY, fit=same, validation=TINY, criterion="heldout")
    assert found.best.num_states == 2


def test_table():
    found = select(build, [1, 2], TINY, folds=2)
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["states", "log-likelihood", "parameters", "AIC", "BIC", "held-out", "per", "step"]
    assert lines[1].split()[0] == "1*"
    assert "+-" in lines[2]
    assert lines[3] == "* best by bic"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_states": []}, ValueError, "num_states: expected at least one, got none"),
        ({"num_states": [0]}, ValueError, "num_states: expected ints of at least 1, got 0"),
        ({"num_states": [1.5]}, ValueError, "num_states: expected ints of at least 1, got 1.5"),
        ({"build": 3}, TypeError, "build: expected a function, got int"),
        ({"fit": 3}, TypeError, "fit: expected a function, got int"),
        (
            {"build": lambda k: HMM(nn.CategoricalEmission(2, 2))},
            ValueError,
            "build: expected an HMM of 1 states, got 2",
        ),
        ({"build": lambda k: torch.nn.Linear(k, 1)}, ValueError, "build: expected an HMM of 1 states, got Linear"),
        ({"criterion": "best"}, ValueError, "criterion: expected 'aic', 'bic' or 'heldout', got 'best'"),
        ({"criterion": "heldout"}, ValueError, "'heldout' expects validation sequences or folds, got neither"),
        ({"validation": TINY, "folds": 2}, ValueError, "folds: expected None since there are validation"),
        ({"folds": 1}, ValueError, "folds: expected an int from 2 to the number of sequences, 4, got 1"),
        ({"folds": 5}, ValueError, "folds: expected an int from 2"),
        ({"data": torch.zeros(2, 3)}, TypeError, "data: expected pyrohmm.data.Sequences, got Tensor"),
        ({"validation": 3}, TypeError, "validation: expected pyrohmm.data.Sequences, got int"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"build": build, "num_states": [1], "data": TINY, **arguments}
    with pytest.raises(error, match=message):
        select(given.pop("build"), given.pop("num_states"), given.pop("data"), **given)


def test_wrong_arguments_of_scores():
    nothing = Sequences(torch.zeros(1, 2), mask=torch.zeros(1, 2, dtype=torch.bool))
    for score in (criteria, predictive_score):
        with pytest.raises(TypeError, match="model: expected an HMM, got int"):
            score(3, TINY)
        with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got list"):
            score(build(1), [[0]])
        with pytest.raises(ValueError, match="data: expected at least one observed step, got none"):
            score(build(1), nothing)
    unlucky = Sequences(torch.zeros(2, 1).long(), mask=torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="folds: expected an observed step in every fold"):
        select(build, [1], unlucky, folds=2)
