import torch

from pyrohmm.checks.relabelling import common_labels


def test_noisy_draws_with_shuffled_names_agree_again():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (200,), generator=generator)
    true_names = torch.stack([torch.randperm(4, generator=generator) for _ in range(30)])
    states = torch.stack([names[truth] for names in true_names])
    wrong = torch.rand(states.shape, generator=generator) < 0.2
    states = torch.where(wrong, torch.randint(0, 4, states.shape, generator=generator), states).to(torch.int16)
    states[:, -5:] = -1
    permutations = common_labels(states, torch.randn(30, generator=generator), 4)
    # New state k is the old one permutation[k]: all draws mean the same by it.
    meant = true_names.argsort(-1).gather(1, permutations)
    assert (meant == meant[0]).all()


def test_what_agrees_stays():
    states = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]])
    assert common_labels(states, torch.zeros(3), 3).equal(torch.arange(3).expand(3, 3))


def test_one_draw_and_one_state():
    assert common_labels(torch.tensor([[0, 0]]), torch.zeros(1), 1).tolist() == [[0]]
    # Whatever the best draw, the first keeps its names.
    for scores in torch.eye(3):
        found = common_labels(torch.tensor([[0, 1], [1, 0], [1, 0]]), scores, 2)
        assert found.tolist() == [[0, 1], [1, 0], [1, 0]]
