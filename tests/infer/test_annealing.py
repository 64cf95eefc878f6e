"""The KL term counts with its weight, the likelihood in full."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

from pyrohmm.data import Sequences
from pyrohmm.infer import fit_svi
from pyrohmm.infer.annealing import Annealing
from pyrohmm.infer.elbo import UnreadELBO
from tests.infer.programs import latent_guide, latent_model, level_guide, level_model, log_likelihood, make_data

fit = functools.partial(fit_svi, progress=False, learning_rate=1e-9)

STANDARD = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)


def gradients() -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in pyro.get_param_store().named_parameters()}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("elbo", [UnreadELBO(), Trace_ELBO()], ids=["unread", "pyro"])
def test_loss_and_gradient_are_those_of_a_plain_computation(weight, batch, elbo):
    data = make_data()[:batch]
    noise = torch.randn(data.num_total + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    annealing = Annealing(latent_model, functools.partial(latent_guide, noise=noise))
    annealing.weight = weight
    loss = elbo.loss_and_grads(*annealing.programs, data)
    found = gradients()
    names = {name: value.detach().requires_grad_() for name, value in pyro.get_param_store().items()}
    slope_q = dist.Normal(names["slope_loc"], names["slope_scale"])
    slope = slope_q.loc + slope_q.scale * noise[-1]
    level_q = dist.Normal(names["weight"] * data.x.sum(1) / data.lengths, names["scale"])
    level = level_q.loc + level_q.scale * noise[data.index]
    parts = log_likelihood(data, names["loc"], level * slope)
    parts = parts + weight * (STANDARD.log_prob(level) - level_q.log_prob(level))
    total = parts.sum() * data.num_total / len(data) - names["loc"].square().sum() / 10
    expected = -(total + weight * (STANDARD.log_prob(slope) - slope_q.log_prob(slope)))
    assert float(loss) == pytest.approx(expected.item(), rel=1e-10)
    expected.backward()
    for name, value in names.items():
        # The store's are those of the unconstrained parameters.
        factor = value.detach() if name.endswith("scale") else 1.0
        torch.testing.assert_close(found[name], value.grad * factor)


def switch_model() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(2 * z, 1.0), obs=torch.tensor(0.7))


def switch_guide() -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))


def test_score_function():
    """The mean of the estimates over both values is the derivative of the weighted bound."""
    weight, annealing = 0.3, Annealing(switch_model, switch_guide)
    annealing.weight = weight
    estimates = {}
    for value in (0.0, 1.0):
        pyro.clear_param_store()
        for seed in range(20):
            pyro.set_rng_seed(seed)
            if (z := pyro.poutine.trace(switch_guide).get_trace().nodes["z"]["value"]) == value:
                pyro.set_rng_seed(seed)
                UnreadELBO().loss_and_grads(*annealing.programs)
                estimates[z.item()] = gradients()["logit"]
                break
    logit = torch.tensor(0.4, requires_grad=True)
    q, values = dist.Bernoulli(logits=logit), torch.tensor([0.0, 1.0])
    probs = q.log_prob(values).exp()
    kl = dist.Bernoulli(0.3).log_prob(values) - q.log_prob(values)
    bound = (probs * (dist.Normal(2 * values, 1.0).log_prob(torch.tensor(0.7)) + weight * kl)).sum()
    (expected,) = torch.autograd.grad(-bound, logit)
    # The term of the entropy has mean zero, and Pyro's estimate has it too.
    found = sum(prob * estimates[value] for value, prob in zip((0.0, 1.0), probs.detach(), strict=True))
    torch.testing.assert_close(found, expected)


def test_enumerated_states_are_part_of_the_likelihood():
    data = make_data()
    sequential = functools.partial(level_model, vectorized=False)
    collapsed = fit(level_model, data, level_guide, steps=3, annealing=4).loss
    pyro.clear_param_store()
    enumerated = fit(sequential, data, level_guide, steps=3, annealing=4, loss=TraceEnum_ELBO(max_plate_nesting=2)).loss
    assert enumerated == pytest.approx(collapsed, rel=1e-9)
    pyro.clear_param_store()
    assert fit(level_model, data, level_guide, steps=3).loss[0] != pytest.approx(collapsed[0], rel=1e-3)


def test_kl_in_closed_form():
    data, annealing = make_data(), Annealing(level_model, level_guide)
    found = {}
    for annealing.weight in (0.0, 0.5, 1.0):
        pyro.set_rng_seed(0)
        found[annealing.weight] = TraceMeanField_ELBO().loss(*annealing.programs, data)
    q = dist.Normal(0.3 * data.x.sum(1) / data.lengths, 0.8)
    kl = torch.distributions.kl_divergence(q, STANDARD.expand([6])).sum().item()
    assert found[1.0] - found[0.0] == pytest.approx(kl, rel=1e-6)
    assert found[0.5] - found[0.0] == pytest.approx(kl / 2, rel=1e-6)


@pytest.mark.parametrize("guide", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_pyros_guides(guide):
    """The constrained site and the one that it is drawn by get the weight, a change of volume included."""

    def model(data: Sequences) -> None:
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        with pyro.plate("sequences", data.num_total, subsample=data.index):
            pyro.sample("x", dist.Normal(0.0, scale), obs=data.x[:, 0])

    data = make_data(dtype=torch.float32)
    guide = guide(model)
    guide(data)
    traces = {}
    for weight in (0.0, 0.5, 1.0):
        annealing = Annealing(model, guide)
        annealing.weight = weight
        pyro.set_rng_seed(0)
        q = pyro.poutine.trace(annealing.programs[1]).get_trace(data)
        p = pyro.poutine.trace(pyro.poutine.replay(annealing.programs[0], trace=q)).get_trace(data)
        p.compute_log_prob()
        traces[weight] = q.log_prob_sum().item(), p.nodes["scale"]["log_prob"].item(), p.nodes["x"]["log_prob_sum"]
    assert traces[0.0][:2] == (0.0, 0.0)
    assert traces[0.5][:2] == pytest.approx([value / 2 for value in traces[1.0][:2]])
    assert traces[0.5][2] == traces[1.0][2] == traces[0.0][2]


@pytest.mark.parametrize("sites", [["level"], ["slope"], ["slope", "level"]])
def test_chosen_sites(sites):
    data = make_data()
    annealing = Annealing(latent_model, latent_guide, sites)
    annealing.weight = 0.25
    q = pyro.poutine.trace(annealing.programs[1]).get_trace(data)
    p = pyro.poutine.trace(pyro.poutine.replay(annealing.programs[0], trace=q)).get_trace(data)
    for trace in (q, p):
        scales = {name: site["scale"] for name, site in trace.nodes.items() if name in ("slope", "level")}
        assert scales == {name: 0.25 if name in sites else 1.0 for name in ("slope", "level")}
    assert p.nodes["prior"]["scale"] == p.nodes["time"]["scale"] == 1.0


def test_chosen_sites_of_pyros_guides():
    data = make_data()
    blocked = pyro.poutine.block(latent_model, hide=["level"])
    assert fit(blocked, data, AutoNormal(blocked), steps=1, annealing=3, annealed=["slope"]).kl_weight == [1 / 3]
    for guide in (AutoMultivariateNormal(latent_model), AutoMultivariateNormal(blocked)):
        with pytest.raises(ValueError, match=r"annealed: expected a guide that draws each site by .*, got \['_Auto"):
            fit(latent_model, data, guide, annealing=3, annealed=["slope"])


def test_weights_are_in_the_history_and_held_out_data_have_the_whole_bound():
    data = make_data()
    options = {"validation": data, "evaluate_every": 2, "steps": 5}
    plain = fit(level_model, data, level_guide, **options)
    pyro.clear_param_store()
    linear = fit(level_model, data, level_guide, annealing=4, **options)
    pyro.clear_param_store()
    stepwise = fit(level_model, data, level_guide, annealing=lambda step: 0.5 if step < 3 else 1, **options)
    assert plain.kl_weight == [1.0] * 5
    assert linear.kl_weight == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert stepwise.kl_weight == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert linear.loss[3:] == pytest.approx(plain.loss[3:])
    assert linear.loss[1] == pytest.approx(stepwise.loss[1])
    assert linear.loss[1] != pytest.approx(plain.loss[1], rel=1e-3)
    assert linear.validation == pytest.approx(plain.validation)


@pytest.mark.parametrize("stopped", [2, 5])
def test_resumed_fit_gives_the_same_numbers(tmp_path, stopped):
    data, path = make_data(), tmp_path / "fit.pt"
    options = {"annealing": 6, "annealed": ["level"], "batch_size": 4, "learning_rate": 0.05}
    expected = fit(level_model, data, level_guide, steps=9, **options)
    pyro.clear_param_store()
    fit(level_model, data, level_guide, steps=stopped, checkpoint=path, **options)
    pyro.clear_param_store()
    found = fit(level_model, data, level_guide, steps=9, checkpoint=path, **options)
    assert (found.loss, found.kl_weight) == (expected.loss, expected.kl_weight)
    assert found.gradient_norm == expected.gradient_norm
    with pytest.raises(ValueError, match="annealing=6, got 7"):
        fit(level_model, data, level_guide, steps=9, checkpoint=path, **(options | {"annealing": 7}))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"annealing": 0}, ValueError, "annealing: expected at least 1, got 0"),
        ({"annealing": "linear"}, TypeError, "annealing: expected an int, got str"),
        ({"annealing": lambda step: 1.5}, ValueError, "annealing: expected a weight from 0 to 1, got 1.5 at step 1"),
        ({"annealing": lambda step: float("nan")}, ValueError, "from 0 to 1, got nan"),
        ({"annealed": ["level"]}, ValueError, "annealed: expected names of sites, with annealing=, got"),
        ({"annealing": 3, "annealed": "level"}, ValueError, "annealed: expected names of sites, got 'level'"),
        (
            {"annealing": 3, "annealed": ["z", "level"]},
            ValueError,
            r"annealed: expected latent sites of the guide, \['level'\], got \['z'\]",
        ),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        fit(level_model, make_data(), level_guide, **options)
