import pyro.distributions as dist
import pytest
import torch

from pyrohmm.nn import PeriodicTransition

K, P = 3, 4


def test_the_table_is_that_of_the_phase_of_the_step_entered():
    part = PeriodicTransition(K, P, column=1)
    inputs = torch.tensor([[0.3, 0.0], [0.1, 3.0], [0.0, 5.0], [9.0, -1.0]])
    assert part.phases(inputs).tolist() == [0, 3, 1, 3]
    assert torch.equal(part.matrix(inputs), part.logits[[0, 3, 1, 3]])
    assert torch.equal(part.log_probs(inputs), part.phase_log_probs()[[0, 3, 1, 3]])
    # Without a batch, and whole numbers that are ints.
    assert torch.equal(part.matrix(torch.tensor([0, 2])), part.logits[2])


def test_steps_are_added_up_by_phase():
    generator = torch.Generator().manual_seed(0)
    part = PeriodicTransition(K, P)
    weights = torch.rand(5, 6, K, K, generator=generator)
    phases = torch.randint(3, (5, 6, 1), generator=generator)  # the last phase is never met
    counts = part.expected_statistics(weights, phases)["counts"]
    expected = torch.zeros(P, K, K, dtype=torch.float64)
    for n in range(5):
        for t in range(6):
            expected[phases[n, t, 0]] += weights[n, t].double()
    assert counts.dtype == torch.float64
    torch.testing.assert_close(counts, expected)
    before = part.logits[3].clone()
    events = part.maximize({"counts": counts})
    assert torch.equal(part.logits[3], before)
    assert [flags.tolist() for flags in events.values()] == [[True] * K]


@pytest.mark.parametrize("lead", [(), (2,)])
def test_no_step_and_one_step(lead):
    """As a model hands them over: sequences of one step have no transition, a single one comes without its dims."""
    part = PeriodicTransition(K, P)
    if lead:
        part.logits = torch.nn.Parameter(part.logits.detach().expand(*lead, 1, 1, P, K, K).clone())
    none = part.expected_statistics(torch.zeros(*lead, 7, 0, K, K), torch.zeros(7, 0, 1))["counts"]
    assert none.shape == (*lead, P, K, K) and (none == 0).all()
    one = part.expected_statistics(torch.ones(*lead, K, K), torch.full((1, 1, 1), 2))["counts"]
    assert (one[..., 2, :, :] == 1).all() and one.sum() == torch.Size(lead).numel() * K * K


def test_prior_is_broadcast_over_phases():
    concentration = 1 + torch.rand(K, K)
    part = PeriodicTransition(K, P, prior=dist.Dirichlet(concentration))
    expected = sum(dist.Dirichlet(concentration).log_prob(table.exp()).sum() for table in part.phase_log_probs())
    others = PeriodicTransition(K, P, prior=dist.Dirichlet(concentration))
    shift = sum(dist.Dirichlet(concentration).log_prob(table.exp()).sum() for table in others.phase_log_probs())
    torch.testing.assert_close(part.log_prior() - others.log_prior(), expected - shift, rtol=1e-4, atol=1e-4)


def test_errors():
    part = PeriodicTransition(2, 3, column=1)
    for wrong in (None, torch.zeros(()), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., C\), C at least 2 since column=1"):
            part.matrix(wrong)
    for wrong in (0.5, torch.nan):
        with pytest.raises(ValueError, match=f"inputs: expected whole numbers .phases. in column 1, got {wrong}"):
            part.matrix(torch.tensor([[0.0, 1.0], [0.0, wrong]]))
    with pytest.raises(ValueError, match="period: expected at least 1, got 0"):
        PeriodicTransition(2, 0)
    with pytest.raises(ValueError, match="column: expected at least 0, got -1"):
        PeriodicTransition(2, 3, column=-1)
