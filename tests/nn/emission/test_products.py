"""The product form of Gaussian densities and sums against the plain one."""

import pytest
import torch

from pyrohmm.nn import GaussianEmission, LogNormalEmission
from pyrohmm.nn.emission import products
from tests.nn.emission.cases import K, draw, make

COVARIANCES = ["diag", "spherical", "full", "tied"]
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


@every_covariance
def test_densities_and_sums(covariance):
    part, (x, weights) = make(f"gaussian {covariance}"), draw("gaussian diag")
    part.prepare(x)
    made = part.products(x, torch.ones(len(x), dtype=torch.bool))
    plain = part(torch.arange(K).unsqueeze(-1)).log_prob(x).mT
    torch.testing.assert_close(part.log_prob_of_products(made), plain.detach(), rtol=1e-10, atol=1e-10)
    expected = part.expected_statistics(x, weights)
    for name, value in part.statistics_of_products(made, weights).items():
        torch.testing.assert_close(value, expected[name])
    assert not part.log_prob_of_products(made).requires_grad


@every_covariance
def test_models_side_by_side(covariance):
    parts = [make(f"gaussian {covariance}", seed=seed) for seed in range(3)]
    x, weights = draw("gaussian diag")
    both = make(f"gaussian {covariance}")
    for part in (*parts, both):
        part.prepare(x)
    for name, _ in parts[0].named_parameters():
        tables = torch.stack([part.get_parameter(name).detach() for part in parts])[:, None, None]
        both._parameters[name] = torch.nn.Parameter(tables)
    made = both.products(x, torch.ones(len(x), dtype=torch.bool))
    got = both.log_prob_of_products(made)
    sums = both.statistics_of_products(made, torch.stack([weights, weights.flip(0), weights]))
    for r, part in enumerate(parts):
        torch.testing.assert_close(got[r], part(torch.arange(K).unsqueeze(-1)).log_prob(x).mT.detach())
    for name, value in parts[1].expected_statistics(x, weights.flip(0)).items():
        torch.testing.assert_close(sums[name][1], value)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_blocks(covariance, monkeypatch):
    part, (x, _) = make(f"gaussian {covariance}"), draw("gaussian diag")
    whole = part.products(x, torch.ones(len(x), dtype=torch.bool))
    monkeypatch.setattr(products, "BLOCK", 50)
    made = part.products(x, torch.ones(len(x), dtype=torch.bool))
    assert torch.equal(made.values, whole.values) and made.largest == whole.largest
    torch.testing.assert_close(part.log_prob_of_products(made), part.log_prob_of_products(whole))
    monkeypatch.setattr(products, "_MOST", 100)
    assert part.products(x, torch.ones(len(x), dtype=torch.bool)) is None


@every_covariance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_digits_are_lost(covariance, dtype):
    """Narrow states far apart: the products are right to the dtype, or are not used."""
    for spread in (1.0, 1e2, 1e4, 1e6):
        loc = spread * torch.tensor([[-1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
        part = GaussianEmission(2, 2, covariance).double()
        with torch.no_grad():
            part.loc.copy_(loc)
        x = (loc + torch.tensor([[0.1, -0.2], [0.5, 1.0]], dtype=torch.float64)).to(dtype)
        part = part.to(dtype)
        part.prepare(x)
        got = part.log_prob_of_products(part.products(x, torch.ones(len(x), dtype=torch.bool)))
        if got is None:
            assert spread >= (1e4 if dtype == torch.float32 else 1e2)
            continue
        exact = part.double()(torch.arange(2).unsqueeze(-1)).log_prob(x.double()).mT
        own = exact.diagonal().detach()
        error = (got.double().diagonal() - own).abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 1e-9)


def test_what_was_not_observed_is_not_read():
    part, (x, weights) = make("gaussian full"), draw("gaussian diag")
    x[3:5], weights[3:5] = torch.nan, 0.0
    observed = torch.ones(len(x), dtype=torch.bool)
    observed[3:5] = False
    part.prepare(x[observed])
    made = part.products(x, observed)
    for name, value in part.expected_statistics(x[observed], weights[observed]).items():
        torch.testing.assert_close(part.statistics_of_products(made, weights)[name], value)
    assert part.log_prob_of_products(made).isfinite().all()


def test_other_laws_have_none():
    assert LogNormalEmission(2, 3).products(torch.ones(5, 3), torch.ones(5, dtype=torch.bool)) is None
