import warnings
from importlib.metadata import version

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample

import pyrohmm
from pyrohmm import nn
from pyrohmm.checks import arviz_bridge, to_inference_data
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from tests.models.cases import make

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of ArviZ, of what is to come
    import arviz

matplotlib.use("Agg")

OLD = int(version("arviz").split(".")[0]) < 1

N, T, K = 6, 10, 2
LENGTHS = torch.tensor([10, 1, 4, 10, 7, 10])
LOC, LOGITS = torch.tensor([[-2.0], [2.0]]), torch.tensor([[2.0, 0.0], [0.5, 2.0]])


def points() -> HMM:
    model = HMM(nn.GaussianEmission(K, 1, loc=LOC.tolist()))
    with torch.no_grad():
        model.initial.logits.zero_()
        model.transition.logits.copy_(LOGITS)
    return model


def bayesian() -> HMM:
    model = points()
    model.emission.loc = PyroSample(dist.Normal(LOC, 1.0).to_event(2))
    model.transition.logits = PyroSample(dist.Normal(LOGITS, 1.0).to_event(2))
    return model


def data() -> Sequences:
    drawn = points().simulate(N, T, lengths=LENGTHS, seed=0)
    mask = drawn.valid.clone()
    mask[0, 3] = False
    return Sequences(drawn.x, LENGTHS, mask=mask)


def draws(number: int = 20) -> dict[str, torch.Tensor]:
    """Two chains around the truth, of which the second has the states the other way round."""
    generator = torch.Generator().manual_seed(0)
    loc = LOC + 0.1 * torch.randn(2, number, K, 1, generator=generator)
    logits = LOGITS + 0.1 * torch.randn(2, number, K, K, generator=generator)
    loc[1], logits[1] = loc[1].flip(1), logits[1].flip(1).flip(2)
    return {"emission.loc": loc, "transition.logits": logits}


def converted(**arguments):
    return to_inference_data(bayesian(), data(), draws(), posterior_predictive=8, progress=False, **arguments)


EVERYTHING = {"paths": True, "prior": 3, "coords": {"state": ["low", "high"], "sequence": list("abcdef")}}


def groups(found) -> set[str]:
    return set(found.groups() if OLD else found.children)


def plug_in_loo(found):
    """Of points, whose weights are all equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few sequences
        if OLD:
            return arviz.loo(found)
        likelihood = found["log_likelihood"]["x"]
        equal = xarray.full_like(likelihood, -np.log(likelihood.sizes["draw"]))
        return arviz.loo(found, log_weights=equal, pareto_k=xarray.zeros_like(likelihood[0, 0], dtype=float))


def elpd(loo) -> float:
    return loo.elpd_loo if OLD else loo.elpd


@pytest.fixture(scope="module")
def aligned():
    return converted(**EVERYTHING)


@pytest.fixture(scope="module")
def apart():
    return converted(align=False, paths=True)


def test_groups_dimensions_and_coordinates(aligned):
    found = aligned
    posterior = found["posterior"]
    assert posterior["emission.loc"].dims == ("chain", "draw", "state", "emission.loc_dim_1")
    assert posterior["transition.logits"].dims == ("chain", "draw", "state", "next_state")
    assert posterior["state"].values.tolist() == posterior["next_state"].values.tolist() == ["low", "high"]
    assert posterior["z"].dims == ("chain", "draw", "sequence", "time") and posterior["z"].shape == (2, 20, N, T)
    assert found["log_likelihood"]["x"].dims == ("chain", "draw", "sequence")
    assert found["log_predictive"]["x"].dims == ("chain", "draw", "sequence", "time")
    assert found["posterior_predictive"]["x"].dims == ("chain", "draw", "sequence", "time", "x_dim_0")
    assert found["posterior_predictive"]["x"].shape == (2, 4, N, T, 1)
    assert found["posterior_predictive"]["draw"].values.tolist() == [0, 6, 13, 19]
    assert found["prior"]["emission.loc"].shape == (1, 3, K, 1)
    assert found["prior_predictive"]["x"].shape == (1, 3, N, T, 1)
    assert found["observed_data"]["x"].dims == ("sequence", "time", "x_dim_0")
    assert found["observed_data"]["sequence"].values.tolist() == list("abcdef")
    assert found["constant_data"]["lengths"].values.tolist() == LENGTHS.tolist()
    assert found["constant_data"]["observed"].values.tolist() == data().mask.tolist()
    assert found["posterior"].attrs["inference_library"] == "pyrohmm"


def test_what_is_missing_is_nan_and_nothing_else(aligned):
    found, mask = aligned, data().mask.numpy()
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        x = found[group]["x"].values[..., 0]
        assert (np.isnan(x) == ~np.broadcast_to(mask, x.shape)).all()
    ahead = found["log_predictive"]["x"].values
    assert (np.isnan(ahead) == ~np.broadcast_to(mask, ahead.shape)).all()
    assert np.isfinite(found["log_likelihood"]["x"].values).all()


def test_likelihoods_are_those_of_the_model(apart):
    found, given = apart, draws()
    for chain, draw in ((0, 0), (1, 19)):
        model = points()
        with torch.no_grad():
            model.emission.loc.copy_(given["emission.loc"][chain, draw])
            model.transition.logits.copy_(given["transition.logits"][chain, draw])
            log_prob = model.log_prob(data())
        np.testing.assert_allclose(found["log_likelihood"]["x"].values[chain, draw], log_prob, rtol=1e-5)
    ahead = found["log_predictive"]["x"].sum("time")
    np.testing.assert_allclose(ahead, found["log_likelihood"]["x"], rtol=1e-5)


def test_labels_are_put_right_before_r_hat(aligned, apart):
    together = aligned
    for name in ("emission.loc", "transition.logits"):
        assert arviz.rhat(apart)[name].values.max() > 1.5 and arviz.rhat(together)[name].values.max() < 1.1
        np.testing.assert_array_equal(together["posterior"][name][0], apart["posterior"][name][0])
    np.testing.assert_array_equal(
        together["posterior"]["emission.loc"][1], apart["posterior"]["emission.loc"][1, :, ::-1]
    )
    np.testing.assert_array_equal(
        together["posterior"]["transition.logits"][1], apart["posterior"]["transition.logits"][1, :, ::-1, ::-1]
    )
    np.testing.assert_array_equal(together["log_likelihood"]["x"], apart["log_likelihood"]["x"])
    z = together["posterior"]["z"].values
    assert ((z == -1) == ~data().valid.numpy()).all()
    # The state of the larger observations is called 1 in both chains.
    x = data().x[..., 0].numpy()
    for chain in range(2):
        for sign, state in ((x > 1.0, 1), (x < -1.0, 0)):
            assert (z[chain][:, sign] == state).mean() > 0.9


def test_arviz_takes_it(aligned):
    from matplotlib import pyplot

    found, other = aligned, to_inference_data(points(), data(), num_draws=30, progress=False)
    assert arviz.summary(found, var_names=["emission.loc"])["r_hat"].max() < 1.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few sequences
        loo = arviz.loo(found)
        table = arviz.compare({"drawn": loo, "points": plug_in_loo(other)})
    assert loo.n_data_points == N and np.isfinite(elpd(loo)) and table.shape[0] == 2
    arviz.plot_trace(found, var_names=["emission.loc"])
    if OLD:
        arviz.plot_ppc(found, num_pp_samples=3, random_seed=0)
    else:
        arviz.plot_ppc_dist(found, num_samples=3)
    pyplot.close("all")


def test_points_have_state_paths():
    model, some = points(), data()
    before = torch.get_rng_state()
    found = to_inference_data(model, some, num_draws=400, posterior_predictive=3, progress=False)
    assert torch.get_rng_state().equal(before)
    assert list(found["posterior"].data_vars) == ["z"] and found["posterior"]["z"].shape == (1, 400, N, T)
    z = found["posterior"]["z"].values[0]
    expected = points().posterior(data()).marginals[..., 1].detach().numpy()
    np.testing.assert_allclose((z == 1).mean(0), expected, atol=0.11)
    likelihood = found["log_likelihood"]["x"].values
    assert likelihood.shape == (1, 400, N) and (likelihood == likelihood[:, :1]).all()
    # The plug-in log-likelihood, without a penalty.
    assert elpd(plug_in_loo(found)) == pytest.approx(points().log_prob(data()).sum().item(), rel=1e-4)
    same = to_inference_data(points(), data(), num_draws=400, posterior_predictive=0, progress=False)
    assert (same["posterior"]["z"].values[0] == z).all() and "posterior_predictive" not in groups(same)


def test_draws_of_a_guide():
    model = bayesian()
    guide = AutoNormal(model)
    guide(data())
    for arguments in ({"guide": guide}, {}):
        if not arguments:
            model.given_guide = lambda data: guide(data)
        found = to_inference_data(model, data(), num_draws=7, posterior_predictive=0, progress=False, **arguments)
        assert found["posterior"]["emission.loc"].shape == (1, 7, K, 1)
        assert len(np.unique(found["posterior"]["emission.loc"])) == 14
        assert found["log_likelihood"]["x"].shape == (1, 7, N)


def test_counts_and_inputs():
    model, some = make("periodic")
    found = to_inference_data(model, some, num_draws=3, posterior_predictive=2, progress=False)
    assert found["constant_data"]["inputs"].dims == ("sequence", "time", "inputs_dim_0")
    assert found["constant_data"]["labels"].shape == (4, 4)
    symbols = HMM(nn.CategoricalEmission(2, 3))
    whole = symbols.simulate(2, 5, seed=0)
    found = to_inference_data(symbols, whole, num_draws=3, posterior_predictive=2, progress=False)
    assert found["observed_data"]["x"].dtype == found["posterior_predictive"]["x"].dtype == np.int64


def program(x, lengths=None):
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    with pyro.plate("states", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("sequences", x.shape[0], dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3 if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def test_a_program_of_ones_own():
    x, lengths = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([6, 2, 1, 6])
    generator = torch.Generator().manual_seed(0)
    given = {
        "transition": torch._standard_gamma(torch.ones(2, 5, 3, 3), generator=generator),
        "loc": 2 * torch.randn(2, 5, 3, generator=generator),
    }
    given["transition"] /= given["transition"].sum(-1, keepdim=True)
    found = to_inference_data(
        program, (x, lengths), given, observed_data={"x": x}, constant_data={"lengths": lengths}, progress=False
    )
    assert found["posterior"]["transition"].dims == ("chain", "draw", "state", "next_state")
    assert found["posterior"]["loc"].dims == ("chain", "draw", "state")
    assert found["observed_data"]["x"].dims == ("sequence", "time") and "posterior_predictive" not in groups(found)
    for chain in range(2):
        fixed = {name: value[chain, 3] for name, value in given.items()}
        trace = pyro.poutine.trace(pyro.condition(program, fixed)).get_trace(x, lengths)
        expected = trace.nodes["time"]["fn"].log_factor.reshape(4)
        np.testing.assert_allclose(found["log_likelihood"]["x"].values[chain, 3], expected, rtol=1e-5)
    assert (np.isnan(found["log_predictive"]["x"].values[0, 0]).sum(-1) == 6 - lengths.numpy()).all()
    prior = {"loc": torch.zeros(7, 3)}
    found = to_inference_data(program, (x,), given, prior=prior, align=False, progress=False)
    assert found["prior"]["loc"].dims == ("chain", "draw", "state") and found["prior"]["loc"].shape == (1, 7, 3)
    with pytest.raises(ValueError, match="prior: expected draws for a program"):
        to_inference_data(program, (x,), given, prior=3, progress=False)


def test_a_single_sequence_without_plates():
    def coin(x):
        z = None
        for t in pyrohmm.markov("time", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x[t])

    found = to_inference_data(coin, (torch.zeros(5),), num_draws=4, progress=False)
    assert found["posterior"]["z"].shape == (1, 4, 1, 5) and found["log_likelihood"]["x"].shape == (1, 4, 1)


def test_axes_that_are_no_states_are_found_out():
    def features(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2, 2]).to_event(2))
        with pyro.plate("sequences", len(x), dim=-2):
            z = None
            for t in pyrohmm.markov("time", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x[:, t])

    one = torch.tensor([[-2.0, 1.0], [2.0, 0.0]])
    x = one[torch.randint(0, 2, (5, 8), generator=torch.Generator().manual_seed(0))]
    given = {"loc": torch.stack([one, one.flip(0)]).unsqueeze(1)}
    with pytest.raises(ValueError, match="dims: with the states of chain 1, draw 0 in another order the log-likeli"):
        to_inference_data(features, (x,), given, progress=False)
    found = to_inference_data(features, (x,), given, dims={"loc": ["state", "feature"]}, progress=False)
    np.testing.assert_array_equal(found["posterior"]["loc"][1], found["posterior"]["loc"][0])
    assert found["posterior"]["loc"].dims == ("chain", "draw", "state", "feature")


def test_version_one_gets_a_data_tree(aligned, monkeypatch):
    monkeypatch.setattr(arviz_bridge, "version", lambda name: "1.0")
    new = converted(**EVERYTHING)
    assert isinstance(new, xarray.DataTree) and set(new.children) == groups(aligned)
    assert new.attrs["inference_library"] == "pyrohmm"
    for group in groups(aligned):
        old = aligned[group] if OLD else aligned[group].to_dataset()
        xarray.testing.assert_identical(new[group].to_dataset(), old)
        # What holds draws has their dimensions in front, and the data none of them.
        for value in new[group].data_vars.values():
            assert (value.dims[:2] == ("chain", "draw")) == (not group.endswith("_data"))
    assert new.posterior["emission.loc"].shape == (2, 20, K, 1)


def test_bad_input():
    model, some = bayesian(), data()
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        to_inference_data(model, some.x)
    with pytest.raises(TypeError, match="data: expected the tuple of the program's arguments, got Tensor"):
        to_inference_data(program, some.x)
    with pytest.raises(TypeError, match="model: expected an HMM or a Pyro program, got int"):
        to_inference_data(1, some)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent site 'transition.logits' is not fixed"):
        to_inference_data(model, some)
    with pytest.raises(ValueError, match="dims: expected 2 names for 'emission.loc', got \\['state'\\]"):
        converted(dims={"emission.loc": ["state"]})
    with pytest.raises(ValueError, match="coords: expected 2 labels for 'state', got 3"):
        converted(coords={"state": "abc"})
    with pytest.raises(ValueError, match="loop: expected a pyrohmm.markov loop 'other' with data in the program"):
        converted(loop="other")


@pytest.mark.slow
def test_draws_of_nuts():
    from pyro.infer import MCMC, NUTS

    model, some = bayesian(), data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=15, warmup_steps=15, disable_progbar=True)
        mcmc.run(some)
    found = to_inference_data(model, some, mcmc.get_samples(group_by_chain=True), progress=False)
    assert found["posterior"]["emission.loc"].shape == (1, 15, K, 1)
    assert found["log_likelihood"]["x"].shape == (1, 15, N)
    assert found["posterior_predictive"]["x"].shape == (1, 15, N, T, 1)
    assert abs(found["posterior"]["emission.loc"].mean(("chain", "draw")).values - LOC.numpy()).max() < 1.0
