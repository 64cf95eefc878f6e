"""The posterior of a program's states, against Pyro's own inference on the sequential form."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, infer_discrete

import pyrohmm
from tests.program.programs import CASES, D, K, T, normal

DECODED = [
    "plain",
    "no plate",
    "ragged, masked",
    "Bernoulli tones, inner plate",
    "autoregressive",
    "sees the previous state",
    "neural emission",
    "neural input-driven transitions",
    "two streams",
]


@pytest.mark.parametrize("name", DECODED)
def test_decodes_the_same_path_as_infer_discrete(name):
    case = CASES[name]
    pyro.clear_param_store()
    found = pyrohmm.posterior(case.model)(*case.args)["time"].viterbi().states
    decoded = infer_discrete(case.model, first_available_dim=-5, temperature=0)
    trace = poutine.trace(decoded).get_trace(*case.args, vectorized=False)
    steps = [trace.nodes[f"z_{t}"]["value"] for t in range(found.shape[-1])]
    expected = torch.cat([step.reshape(*found.shape[:-1], 1) for step in steps], -1)
    torch.testing.assert_close(torch.where(found >= 0, expected, -1), found)


def test_factorial_states_are_told_apart():
    case = CASES["factorial"]
    pyro.clear_param_store()
    result = pyrohmm.posterior(case.model)(*case.args)
    values = result.values_of("time", result["time"].mode)
    decoded = infer_discrete(case.model, first_available_dim=-5, temperature=0)
    trace = poutine.trace(decoded).get_trace(*case.args, vectorized=False)
    for site in ("a", "b"):
        expected = torch.cat([trace.nodes[f"{site}_{t}"]["value"].reshape(3, 1) for t in range(T)], -1)
        torch.testing.assert_close(values[site], expected)


def test_batch_shapes():
    pyro.clear_param_store()
    shapes = {
        "plain": (3,),
        "no plate": (),
        "time first": (3,),
        "Bernoulli tones, inner plate": (3,),
        "chains in a plate": (3, D),
        "subsampled": (2,),
    }
    for name, shape in shapes.items():
        case = CASES[name]
        pyro.clear_param_store()
        chain = pyrohmm.posterior(case.model)(*case.args)["time"]
        assert chain.viterbi().states.shape == (*shape, T), name
        assert chain.batch_shape == shape, name


def test_evidence_is_the_chains_normaliser():
    case = CASES["autoregressive"]
    pyro.clear_param_store()
    trace = poutine.trace(case.model).get_trace(*case.args)
    chain = pyrohmm.posterior(case.model)(*case.args)["time"]
    log_prob = chain.log_prob(chain.mode)
    assert (log_prob <= 0).all() and (log_prob > -T * torch.tensor(float(K)).log()).all()
    assert trace.log_prob_sum().isfinite()


def test_guide_fixes_the_other_latents():
    case = CASES["global latent, amortised guide"]
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="latent site 'h' is not fixed"):
        pyrohmm.posterior(case.model)(*case.args)
    chain = pyrohmm.posterior(case.model, case.guide)(*case.args)["time"]
    assert chain.batch_shape == (3,)
    fixed = pyro.condition(case.model, {"h": torch.zeros(3, 1, dtype=torch.float64)})
    assert pyrohmm.posterior(fixed)(*case.args)["time"].batch_shape == (3,)


def test_program_without_data_is_refused():
    def model():
        for _ in pyrohmm.markov("time", 3):
            pyro.sample("z", dist.Categorical(torch.ones(2)))

    with pytest.raises(ValueError, match=r"expected a pyrohmm.markov loop with an observed site"):
        pyrohmm.posterior(model)()


def two_state_program(x):
    stay = pyro.sample("stay", dist.Beta(torch.full((2,), 2.0), 1.0).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    rows = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
    z = None
    for t in pyrohmm.markov("time", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2 if z is None else rows[z]))
        pyro.sample("x", dist.Normal(loc[z], 0.5), obs=x[t])


def simulated_two_states(num_steps):
    pyro.set_rng_seed(1)
    prior = pyrohmm.MarkovChain(torch.zeros(2), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), num_steps=num_steps)
    return pyrohmm.HiddenMarkovModel(prior, dist.Normal(torch.tensor([-1.0, 2.0]), 0.5)).sample()


@pytest.mark.slow
def test_nuts_recovers_the_simulating_parameters():
    x = simulated_two_states(150)
    mcmc = MCMC(NUTS(two_state_program, max_tree_depth=5), num_samples=80, warmup_steps=80, disable_progbar=True)
    mcmc.run(x)
    samples = mcmc.get_samples()
    # The likelihood does not know which state is called 0: order them by their location.
    order = samples["loc"].argsort(-1)
    for site, truth in (("loc", [-1.0, 2.0]), ("stay", [0.9, 0.8])):
        draws = samples[site].gather(-1, order)
        mean, spread = draws.mean(0), draws.std(0)
        assert ((mean - torch.tensor(truth)).abs() < 4 * spread).all()
        assert (spread < 0.15).all()


def test_nuts_runs_on_the_collapsed_program():
    x = simulated_two_states(30)
    mcmc = MCMC(NUTS(two_state_program, max_tree_depth=4), num_samples=25, warmup_steps=25, disable_progbar=True)
    mcmc.run(x)
    loc = mcmc.get_samples()["loc"].sort(-1).values.mean(0)  # whichever state is called 0
    assert ((loc - torch.tensor([-1.0, 2.0])).abs() < 0.5).all()


def test_svi_trains_the_collapsed_program():
    x = simulated_two_states(100)

    def model(x):
        rows, loc = pyro.param("rows", torch.zeros(2, 2)), pyro.param("loc", torch.tensor([-0.1, 0.1]))
        z = None
        for t in pyrohmm.markov("time", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=rows[0] if z is None else rows[z]))
            pyro.sample("x", dist.Normal(loc[z], 0.5), obs=x[t])

    pyro.clear_param_store()
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(60):
        svi.step(x)
    assert ((pyro.param("loc") - torch.tensor([-1.0, 2.0])).abs() < 0.2).all()
    pyro.clear_param_store()


def test_posterior_is_differentiable():
    x = normal(2, T)
    loc = torch.tensor([-1.0, 1.0], dtype=torch.float64, requires_grad=True)

    def model():
        with pyro.plate("sequences", 2, dim=-2):
            for t in pyrohmm.markov("time", T, dim=-1):
                z = pyro.sample("z", dist.Categorical(torch.ones(2, dtype=torch.float64)))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])

    chain = pyrohmm.posterior(model)()["time"]
    (grad,) = torch.autograd.grad(chain.entropy().sum(), loc)
    assert grad.isfinite().all() and grad.abs().max() > 0


def test_unknown_loop():
    case = CASES["no plate"]
    pyro.clear_param_store()
    with pytest.raises(KeyError, match=r"no loop of the program is called 'z'; its loops are \['time'\]"):
        pyrohmm.posterior(case.model)(*case.args)["z"]
