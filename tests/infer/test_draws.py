import itertools

import pytest
import torch
from pyro.ops.stats import gelman_rubin

from pyrohmm.infer import align_draws

K, S = 3, 40
LOC = torch.tensor([-2.0, 0.0, 2.0])
DIMS = {"initial": -1, "transition": (-2, -1), "loc": -2}


def switched(dtype=torch.float64, chains=2):
    """Draws about one truth, each in an order of its own, and the orders."""
    generator = torch.Generator().manual_seed(0)
    loc = LOC.unsqueeze(-1) + 0.3 * torch.randn(chains, S, K, 2, generator=generator)
    rows = torch.eye(K) + 0.1 * torch.randn(chains, S, K, K, generator=generator)
    first = torch.tensor([0.2, 0.3, 0.5]) + 0.01 * torch.randn(chains, S, K, generator=generator)
    order = torch.rand(chains, S, K, generator=generator).argsort(-1)
    draws = {
        "initial": first.gather(-1, order),
        "transition": rows.gather(-2, order.unsqueeze(-1).expand(rows.shape)).gather(
            -1, order.unsqueeze(-2).expand(rows.shape)
        ),
        "loc": loc.gather(-2, order.unsqueeze(-1).expand(loc.shape)),
        "noise": torch.randn(chains, S, generator=generator),
    }
    straight = {"initial": first, "transition": rows, "loc": loc, "noise": draws["noise"]}
    return {k: v.to(dtype) for k, v in draws.items()}, {k: v.to(dtype) for k, v in straight.items()}, order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orders_are_found(dtype):
    draws, straight, order = switched(dtype)
    reference = {"loc": LOC.unsqueeze(-1).expand(K, 2)}
    aligned = align_draws(draws, DIMS, "loc", reference=reference, sample_dims=2)
    assert torch.equal(aligned.permutations, order.argsort(-1))
    for name, value in straight.items():
        assert torch.equal(aligned.draws[name], value)
        assert aligned.draws[name].dtype == dtype
    # Without a reference, up to the order of the first draw.
    found = align_draws({k: v.flatten(0, 1) for k, v in draws.items()}, DIMS, ["loc", "initial"])
    first = order[0, 0]
    assert torch.equal(found.draws["loc"], straight["loc"].flatten(0, 1)[:, first])
    assert torch.equal(found.draws["transition"], straight["transition"].flatten(0, 1)[:, first][..., first])


def test_r_hat_of_chains_that_switched():
    draws, straight, _ = switched()
    # Each chain in one order, but not the same.
    draws = {
        name: torch.stack([value[0], _swapped(name, value[1])]) for name, value in straight.items() if name != "noise"
    }
    before = gelman_rubin(draws["loc"], chain_dim=0, sample_dim=1)
    after = gelman_rubin(align_draws(draws, DIMS, "loc", sample_dims=2).draws["loc"], chain_dim=0, sample_dim=1)
    assert before[[0, 2]].min() > 3 and after.max() < 1.1


def _swapped(name, value):
    dims = DIMS[name] if isinstance(DIMS[name], tuple) else (DIMS[name],)
    return value.flip(dims)


def test_best_of_all_orders():
    """Against all K! orders of each draw, given the reference."""
    torch.manual_seed(1)
    draws, reference = {"loc": torch.randn(6, 4, 2)}, torch.randn(4, 2)
    found = align_draws(draws, {"loc": -2}, "loc", reference={"loc": reference})
    spread = draws["loc"].flatten(0, 1).std(0, correction=0)
    for before, after in zip(draws["loc"], found.draws["loc"], strict=True):
        distances = [
            ((before[list(order)] - reference) / spread).square().sum() for order in itertools.permutations(range(4))
        ]
        torch.testing.assert_close(((after - reference) / spread).square().sum(), min(distances))


def test_by_state_marginals():
    draws, straight, order = switched()
    draws, straight, order = {k: v[0] for k, v in draws.items()}, {k: v[0] for k, v in straight.items()}, order[0]
    torch.manual_seed(2)
    sharp = torch.eye(K)[torch.randint(0, K, (2, 7))]
    marginals = (0.1 + sharp.expand(S, 2, 7, K) + 0.2 * torch.rand(S, 2, 7, K)).double()
    switched_marginals = marginals.gather(-1, order[:, None, None].expand(marginals.shape))
    found = align_draws(draws, DIMS, switched_marginals, reference=sharp)
    assert torch.equal(found.draws["loc"], straight["loc"]) and torch.equal(found.permutations, order.argsort(-1))
    alone = align_draws(draws, DIMS, switched_marginals)
    assert torch.equal(alone.draws["loc"], straight["loc"][:, order[0]])


def test_one_state_and_one_draw():
    draws = {"loc": torch.zeros(1, 1), "x": torch.ones(1)}
    found = align_draws(draws, {"loc": -1}, "loc")
    assert found.permutations.tolist() == [[0]] and torch.equal(found.draws["x"], draws["x"])
    assert align_draws(draws, {"loc": -1}, torch.zeros(1, 1)).permutations.tolist() == [[0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_dims": {"scale": -1}, "by": "scale"}, "state_dims: expected sites that were drawn, got 'scale'"),
        ({"state_dims": {"loc": -3}}, "state_dims: expected negative dims right of 1 of draws for 'loc'"),
        ({"state_dims": {"loc": 1}}, "state_dims: expected negative dims"),
        ({"by": "transition"}, "by: expected sites with one dim of states in state_dims, got 'transition'"),
        ({"by": "noise"}, "by: expected sites with one dim of states in state_dims, got 'noise'"),
        ({"state_dims": {"loc": -1, "initial": -1}}, "draws: expected .* draws and 2 states of 'initial'"),
        ({"by": torch.zeros(S)}, r"by: expected shape \(\*sample_shape, ..., K\), got"),
        ({"by": torch.full((S, K), torch.nan)}, "by: expected finite features"),
        ({"reference": {"initial": torch.zeros(K)}}, "reference: expected a value of 'loc', got none"),
        ({"reference": {"loc": torch.zeros(K + 1, 2)}}, "reference: expected the shape of one draw of by"),
        ({"by": torch.zeros(S, K), "reference": {}}, "reference: expected a tensor, as by is one, got dict"),
    ],
)
def test_errors(change, message):
    draws = {name: value[0] for name, value in switched()[0].items()}
    with pytest.raises(ValueError, match=message):
        align_draws(**{"draws": draws, "state_dims": DIMS, "by": "loc", **change})
