import pyro.distributions as dist
import pytest
import torch

from pyrohmm.infer import fit_em
from pyrohmm.models import HMM
from pyrohmm.nn import GaussianEmission, StationaryInitial, TiedTransition, Transition, banded, left_to_right
from tests.nn.test_part import maximise, objective

K = 4
GROUPS = [1, 0, 1, 0]
# Two words of two states, all of which stay or go on.
WORDS = torch.eye(K, dtype=torch.bool) | torch.eye(K, dtype=torch.bool).roll(1, 1)


def make(relative: bool, *, masked: bool = False, prior: bool = False) -> TiedTransition:
    generator = torch.Generator().manual_seed(0)
    mask = WORDS if relative else torch.tensor([[True, True, True, False], [False, True, True, True]])[GROUPS]
    concentration = 1 + torch.rand(2, K, generator=generator)
    return TiedTransition(
        K,
        GROUPS,
        mask if masked else None,
        relative=relative,
        prior=dist.Dirichlet(concentration) if prior else None,
        generator=generator,
    ).double()


def counts(part: TiedTransition) -> torch.Tensor:
    weights = torch.rand(K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return weights if part.mask is None else weights * part.mask


every_kind = pytest.mark.parametrize("relative", [False, True])
every_mask = pytest.mark.parametrize("masked", [False, True])


@every_kind
@every_mask
def test_each_state_has_the_row_of_its_group(relative, masked):
    part = make(relative, masked=masked)
    matrix = part.matrix()
    for i in range(K):
        for j in range(K):
            entry = part.logits[GROUPS[i], (j - i) % K if relative else j]
            assert matrix[i, j] == (entry if part.mask is None or part.mask[i, j] else -torch.inf)
    torch.testing.assert_close(part(torch.tensor([2, 0])), matrix[[2, 0]])


@every_kind
@every_mask
def test_counts_are_added_up(relative, masked):
    """Against a table on its own, with the counts of a group in each of its rows."""
    part = make(relative, masked=masked)
    weights = counts(part)
    pooled = torch.zeros(2, K, dtype=torch.float64)
    for i in range(K):
        for j in range(K):
            pooled[GROUPS[i], (j - i) % K if relative else j] += weights[i, j]
    torch.testing.assert_close(part.expected_statistics(weights), {"counts": pooled})
    maximise(part, weights)
    rows = Transition(K, torch.ones(K, K, dtype=torch.bool)).double()
    rows.maximize(rows.expected_statistics(pooled[[0, 1, 0, 1]]))
    for i in range(K):
        expected = rows.log_probs()[GROUPS[i]].roll(i if relative else 0)
        actual = part.log_probs()[i]
        allowed = torch.ones(K, dtype=torch.bool) if part.mask is None else part.mask[i]
        torch.testing.assert_close(actual[allowed], expected[allowed])


@every_kind
@every_mask
@pytest.mark.parametrize("prior", [False, True])
def test_is_the_maximum(relative, masked, prior):
    part = make(relative, masked=masked, prior=prior)
    weights = counts(part)
    before = objective(part, weights)
    assert part.has_prior == prior
    maximise(part, weights)
    value = objective(part, weights)
    assert value > before
    (slope,) = torch.autograd.grad(value, [part.logits])
    assert slope.abs().max() < 1e-12
    assert part.logits.isfinite().all()


@every_kind
def test_log_prior_counts_each_row_once(relative):
    part = make(relative, prior=True)
    rows = part.logits.log_softmax(-1)
    torch.testing.assert_close(part.log_prior(), ((part.prior - 1) * rows).sum())


@every_kind
def test_a_group_that_was_never_left_stays(relative):
    part = make(relative)
    weights = counts(part)
    weights[[0, 2]] = 0.0
    before = part.logits.clone()
    ((what, states),) = maximise(part, weights).items()
    assert "never left" in what and states.tolist() == [True, False, True, False]
    torch.testing.assert_close(part.log_probs()[0], before.log_softmax(-1)[1])
    weights[2] = 1.0
    ((_, states),) = maximise(part, weights).items()
    assert not states.any()


@every_kind
@every_mask
def test_relabelled(relative, masked):
    part = make(relative, masked=masked, prior=True)
    other = make(relative, masked=masked, prior=True)
    order = torch.tensor([2, 0, 3, 1])
    other.relabel(order)
    torch.testing.assert_close(other.log_probs(), part.log_probs()[order][:, order])
    torch.testing.assert_close(other.log_prior(), part.log_prior())
    weights = counts(part)
    maximise(part, weights)
    maximise(other, weights[order][:, order])
    torch.testing.assert_close(other.log_probs(), part.log_probs()[order][:, order])
    loaded = make(relative, masked=masked, prior=True)
    loaded.load_state_dict(other.state_dict())
    torch.testing.assert_close(loaded.log_probs(), other.log_probs())


@pytest.mark.parametrize("restarts", [1, 2])
def test_in_a_model(restarts):
    """Side by side, too; a step never makes it worse."""
    part = make(relative=True, masked=True, prior=True)
    emission = GaussianEmission(K, 1, loc=[[0.0], [4.0], [8.0], [12.0]], prior=None).double()
    model = HMM(emission, transition=part).double()
    data = model.simulate(4, 20, seed=0)
    history = fit_em(model, data, steps=6, tolerance=0, restarts=restarts, progress=False)
    assert all(new <= old + 1e-10 for old, new in zip(history.loss, history.loss[1:], strict=False))
    probs = part.log_probs().exp()
    torch.testing.assert_close(probs[0, 1], probs[2, 3])
    assert probs[0, 1] != probs[1, 2]
    torch.testing.assert_close(StationaryInitial(part).log_probs().exp().sum(), torch.tensor(1.0).double())


def test_one_group_and_one_state():
    part = TiedTransition(3, [0, 0, 0])
    assert torch.equal(part.log_probs()[0], part.log_probs()[2]) and part.num_free_parameters == 2
    assert TiedTransition(1, [0]).log_probs().tolist() == [[0.0]]


def test_sticky_start():
    def probs(sticky, **options):
        part = TiedTransition(K, GROUPS, sticky=sticky, generator=torch.Generator().manual_seed(0), **options)
        return part.matrix()

    moved = probs(3.0, relative=True) - probs(0.0, relative=True)
    torch.testing.assert_close(moved, 3 * torch.eye(K))
    together = torch.tensor([[group == other for other in GROUPS] for group in GROUPS])
    torch.testing.assert_close(probs(3.0) - probs(0.0), 3.0 * together)


def test_errors():
    with pytest.raises(TypeError, match="groups: expected int64, got torch.float32"):
        TiedTransition(2, [0.0, 1.0])
    for groups in ([0, 0, 1], [[0, 1]], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="groups: expected 2 numbers, 0 to the last without a gap"):
            TiedTransition(2, groups)
    with pytest.raises(ValueError, match="mask: expected the same for all states of a group"):
        TiedTransition(K, GROUPS, banded(K, 1))
    with pytest.raises(ValueError, match="mask: expected the same for all states of a group"):
        TiedTransition(K, GROUPS, left_to_right(K), relative=True)
    assert TiedTransition(K, [0, 0, 0, 1], left_to_right(K), relative=True).num_free_parameters == 1
    with pytest.raises(ValueError, match=r"prior: expected parameters that broadcast to \(2, 4\)"):
        TiedTransition(K, GROUPS, prior=dist.Dirichlet(torch.ones(K, K)))
