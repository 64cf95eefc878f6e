import math

import pytest

from pyrohmm.infer import History


@pytest.mark.parametrize(
    ("validation", "best_step", "since"),
    [
        ([], None, 0),
        ([3.0], 10, 0),
        ([3.0, 2.0, 4.0, 5.0], 20, 2),
        ([2.0, 2.0], 10, 1),
        ([math.inf, 3.0, math.nan], 20, 1),
        ([math.inf, math.nan], None, 2),
    ],
)
def test_best(validation, best_step, since):
    history = History(evaluated=[10 * (i + 1) for i in range(len(validation))], validation=validation)
    assert history.best_step == best_step
    assert history.evaluations_since_best == since
    if best_step is not None:
        assert history.best_validation == validation[best_step // 10 - 1]


def test_repr_is_short():
    history = History(loss=[1.0] * 1000, stop_reason="interrupted")
    assert repr(history) == "History(1000 steps, loss 1, interrupted)"
    assert repr(History()) == "History(0 steps, finished)"
