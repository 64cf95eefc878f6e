"""Worked examples of the textbooks, to the digits printed there or worked out by hand. All in float64."""

import math

import pytest
import torch

from pyrohmm import ops


def logs(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


class TestUmbrella:
    """Russell and Norvig, Artificial Intelligence, chapter 14: rain (0) or not (1), umbrella seen U U N U U."""

    initial = logs(0.5, 0.5)
    transition = logs([0.7, 0.3], [0.3, 0.7])
    seen, not_seen = [0.9, 0.2], [0.1, 0.8]
    chain = (initial, transition, logs(seen, seen, not_seen, seen, seen))

    def test_log_partition(self):
        assert ops.log_partition(*self.chain).item() == pytest.approx(-3.3725020443, abs=1e-10)

    def test_viterbi(self):
        states, log_prob = ops.viterbi(*self.chain)
        assert states.tolist() == [0, 0, 1, 0, 0]
        assert log_prob.item() == pytest.approx(-4.4590282910, abs=1e-10)

    def test_smooth(self):
        rain = ops.smooth(*self.chain).state_marginals[:, 0]
        assert rain.tolist() == pytest.approx([0.867339, 0.820419, 0.307484, 0.820419, 0.867339], abs=5e-7)

    def test_filter(self):
        # The book's own numbers: rain on day 1 with probability .818, on day 2 with .883.
        rain = ops.filter(*self.chain).log_probs[:2, 0].exp()
        assert rain.tolist() == pytest.approx([0.818, 0.883], abs=5e-4)
        # And the smoothed day 1 given two days: .883.
        two_days = ops.smooth(*self.chain, lengths=torch.tensor(2))
        assert two_days.state_marginals[0, 0].item() == pytest.approx(0.883, abs=5e-4)


class TestDoctor:
    """Healthy (0) or fever (1); the patient feels normal, cold, dizzy."""

    emission = logs([0.5, 0.4, 0.1], [0.1, 0.3, 0.6])
    chain = (logs(0.6, 0.4), logs([0.7, 0.3], [0.4, 0.6]), emission.T)

    def test_probability(self):
        assert ops.log_partition(*self.chain).exp().item() == pytest.approx(0.03628, abs=1e-12)

    def test_viterbi(self):
        states, log_prob = ops.viterbi(*self.chain)
        assert states.tolist() == [0, 0, 1]
        assert log_prob.exp().item() == pytest.approx(0.01512, abs=1e-12)


class TestIceCream:
    """Jurafsky and Martin, Speech and Language Processing, appendix A: hot (0) or cold (1), 3 1 3 ice creams."""

    emission = logs([0.2, 0.4, 0.4], [0.5, 0.4, 0.1])
    eaten = torch.tensor([3, 1, 3])
    chain = (logs(0.8, 0.2), logs([0.6, 0.4], [0.5, 0.5]), emission[:, eaten - 1].T)

    def test_probability(self):
        assert ops.log_partition(*self.chain).exp().item() == pytest.approx(0.028562, abs=1e-12)

    def test_viterbi(self):
        states, log_prob = ops.viterbi(*self.chain)
        assert states.tolist() == [0, 1, 0]
        assert log_prob.exp().item() == pytest.approx(0.0128, abs=1e-12)

    def test_k_best(self):
        # All eight paths by hand: the next after H C H (.8*.4 * .4*.5 * .5*.4) is H H H (.8*.4 * .6*.2 * .6*.4).
        best = ops.k_best(*self.chain, k=8)
        assert best.states[:2].tolist() == [[0, 1, 0], [0, 0, 0]]
        assert best.log_prob[:2].exp().tolist() == pytest.approx([0.0128, 0.009216], abs=1e-12)
        assert best.log_prob.exp().sum().item() == pytest.approx(0.028562, abs=1e-12)


@pytest.fixture(scope="module")
def casino():
    """The dice in use, and the chain of what was rolled: 20 evenings of 300 rolls."""
    initial, transition = logs(0.5, 0.5), logs([0.95, 0.05], [0.1, 0.9])
    faces = logs([1 / 6] * 6, [0.1] * 5 + [0.5])
    generator = torch.Generator().manual_seed(0)
    truth = ops.sample(initial, transition, torch.zeros(20, 300, 2, dtype=torch.float64), generator=generator)
    rolls = torch.multinomial(faces.exp()[truth.flatten()], 1, generator=generator).reshape(truth.shape)
    return truth, (initial, transition, faces.T[rolls])


class TestDishonestCasino:
    """Durbin, Eddy, Krogh and Mitchison, Biological Sequence Analysis, section 3.2: a fair die (0) or a loaded (1)."""

    def test_simulation(self, casino):
        # The loaded die is in use a third of the time: .05 / (.05 + .1).
        assert casino[0].double().mean().item() == pytest.approx(1 / 3, abs=0.05)

    def test_posterior_decoding(self, casino):
        truth, chain = casino
        smoothed = ops.smooth(*chain).state_marginals
        filtered = ops.filter(*chain).log_probs
        decoded = ops.viterbi(*chain).states
        by_posterior, by_filter, by_path = (
            (guess == truth).double().mean().item() for guess in (smoothed.argmax(-1), filtered.argmax(-1), decoded)
        )
        assert by_posterior > 0.8
        assert by_posterior > by_filter  # hindsight helps
        assert by_posterior >= by_path  # the posterior's mode is the best guess of each roll by itself
        assert by_path > 2 / 3  # better than to say "fair" always

    def test_posterior_is_calibrated(self, casino):
        truth, chain = casino
        loaded = ops.smooth(*chain).state_marginals[..., 1]
        sure = loaded > 0.9
        assert sure.sum() > 100
        assert truth[sure].double().mean().item() == pytest.approx(loaded[sure].mean().item(), abs=0.05)

    def test_the_path_the_posterior_and_the_evidence_fit_together(self, casino):
        truth, chain = casino
        log_z = ops.log_partition(*chain)
        best = ops.viterbi(*chain)
        entropy = ops.entropy(*chain)
        assert (best.log_prob < log_z).all()
        assert ((entropy > 0) & (entropy < truth.shape[-1] * math.log(2))).all()
        torch.testing.assert_close(ops.filter(*chain).log_evidence.sum(-1), log_z)
