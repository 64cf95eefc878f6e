import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, init_to_median, init_to_value
from pyro.ops.stats import gelman_rubin

import pyrohmm
from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import align_draws
from pyrohmm.models import HMM, BayesianHMM
from pyrohmm.models.blank import Blank

K, D, V = 2, 2, 3
LENGTHS = torch.tensor([6, 1, 4])
GAMMA = nn.NormalInverseGamma(0.5, 0.4, 3.0, 1.5)
WISHART = nn.NormalInverseWishart(0.5, 0.4, 6.0, torch.tensor([[1.5, 0.5], [0.5, 1.0]]))
EMISSIONS = {
    "diag": lambda: nn.GaussianEmission(K, D, prior=GAMMA),
    "spherical": lambda: nn.GaussianEmission(K, D, "spherical", prior=GAMMA),
    "full": lambda: nn.GaussianEmission(K, D, "full", prior=WISHART),
    "tied": lambda: nn.GaussianEmission(K, D, "tied", prior=WISHART),
    "line": lambda: nn.GaussianEmission(K, 1, prior=GAMMA),
    "full line": lambda: nn.GaussianEmission(K, 1, "full", prior=nn.NormalInverseWishart(0.0, 1.0, 3.0, torch.eye(1))),
    "poisson": lambda: nn.PoissonEmission(K, D, prior=dist.Gamma(2.0, 0.5)),
    "bernoulli": lambda: nn.BernoulliEmission(K, D, prior=dist.Beta(2.0, 1.5)),
    "categorical": lambda: nn.CategoricalEmission(K, V, prior=dist.Dirichlet(torch.full((V,), 0.5))),
}
EVERY = [(name, False) for name in EMISSIONS] + [(name, True) for name in ("diag", "spherical", "line")]
every_model = pytest.mark.parametrize(("name", "ordered"), EVERY)


def make(name, ordered=False, **options):
    transition = nn.Transition(K, prior=dist.Dirichlet(0.5 + torch.eye(K)))
    return BayesianHMM(EMISSIONS[name](), transition=transition, ordered=ordered, **options).double()


def draw(name, entries=False):
    """Ragged sequences with missing steps, or entries."""
    generator = torch.Generator().manual_seed(0)
    dim = 1 if name.endswith("line") else D
    x = torch.randn(3, 6, dim, generator=generator, dtype=torch.float64) * 2
    x = {"poisson": x.abs().round(), "bernoulli": (x > 0).double()}.get(name, x)
    mask = torch.rand(3, 6, generator=generator) < 0.8
    if name == "categorical":
        return Sequences(x[..., 0].abs().round().long().clamp(max=V - 1), LENGTHS, mask=mask)
    x[~mask] = torch.nan
    if entries:
        mask = mask.unsqueeze(-1) & (torch.rand(x.shape, generator=generator) < 0.7)
    return Sequences(x, LENGTHS, mask=mask)


def prior_draw(model, data, seed=0):
    """A trace of the program with its parameters drawn, and their values."""
    torch.manual_seed(seed)
    trace = poutine.trace(model).get_trace(data)
    latent = {k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    return trace, {k: v for k, v in latent.items() if k not in ("sequences", "time")}


def log_prior(prior, emission, hmm):
    """That of the parameters of the emission, by their conjugate law; with one entry of the mean in order."""
    if isinstance(prior, dist.Dirichlet):
        return prior.log_prob(emission["probs"]).sum()
    if isinstance(prior, dist.Distribution):
        return prior.log_prob(next(iter(emission.values()))).sum()
    law = hmm.emission(torch.arange(K))
    precision = emission["precision"]
    wide = precision if precision.dim() == 2 else precision.unsqueeze(-1)
    mean = dist.Normal(prior.loc, (prior.strength * wide).rsqrt()).log_prob(law.mean).sum()
    return mean + prior.precision.log_prob(precision).sum()


@every_model
@pytest.mark.parametrize("entries", [False, True])
def test_program_is_prior_times_likelihood(name, ordered, entries):
    if entries and name in ("categorical", "line", "full line"):
        return
    model, data = make(name, ordered), draw(name, entries)
    for seed in range(3):
        trace, values = prior_draw(model, data, seed)
        trace.compute_log_prob()
        hmm = model.at(values)
        with torch.no_grad():
            likelihood = hmm.log_prob(data)
        torch.testing.assert_close(trace.nodes["time"]["fn"].log_factor.flatten(), likelihood, rtol=1e-10, atol=1e-10)
        rows = model.transition.prior
        expected = dist.Dirichlet(torch.ones(K).double()).log_prob(values["initial"])
        expected = expected + dist.Dirichlet(rows).log_prob(values["transition"]).sum() + likelihood.sum()
        if name not in ("full", "tied", "full line"):
            names = {k: v for k, v in values.items() if k not in ("initial", "transition", "loc")}
            expected = expected + log_prior(model.emission.conjugate_prior().law, names, hmm)
            # All orders are one.
            expected = expected + (torch.tensor(2.0).double().log() if ordered else 0.0)
            torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-10, atol=1e-10)
    assert not any(site["type"] == "param" for site in trace.nodes.values())


@pytest.mark.parametrize("name", ["diag", "full", "tied", "poisson", "categorical"])
def test_sequential_program_is_the_same(name):
    model, data = make(name), draw(name)
    _, values = prior_draw(model, data)
    fixed = poutine.condition(model, values)
    fast = Trace_ELBO(max_plate_nesting=2).loss(fixed, lambda *a, **k: None, data)
    plain = TraceEnum_ELBO(max_plate_nesting=2).loss(fixed, lambda *a, **k: None, data, vectorized=False)
    assert fast == pytest.approx(plain, rel=1e-10)


@every_model
@pytest.mark.parametrize("guide_class", [AutoNormal, AutoLowRankMultivariateNormal])
def test_svi(name, ordered, guide_class):
    model, data = make(name, ordered), draw(name)
    guide = guide_class(model)
    for particles in (1, 3):
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
        loss = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(data)
        assert 0 < loss < 1e4
    assert model.posterior(data, guide).batch_shape == (3,)
    simulated = model.simulate(2, 5, guide=guide, seed=0)
    assert simulated.x.isfinite().all() and model.log_prob(simulated, guide).isfinite().all()


def test_particles_side_by_side_are_as_one_after_another():
    """With a guide that has no spread, all particles are alike."""
    for name, ordered in EVERY:
        model, data = make(name, ordered), draw(name)
        _, values = prior_draw(model, data)
        fixed = poutine.condition(model, values)
        one, three = (
            Trace_ELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=2).loss(
                fixed, lambda *a, **k: None, data
            )
            for n in (1, 3)
        )
        assert one == pytest.approx(three, rel=1e-10), (name, ordered)


def nuts(model, data, num_samples, warmup_steps):
    torch.manual_seed(0)
    kernel = NUTS(model, max_plate_nesting=2, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True)
    mcmc.run(data)
    return mcmc.get_samples()


def two_states(num_sequences, num_steps):
    """A model with its priors, and data of two states that are far apart."""
    transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    truth = HMM(nn.GaussianEmission(2, 1, loc=[[-2.0], [2.0]]))
    with torch.no_grad():
        truth.transition.logits.copy_(transition.log())
    emission = nn.GaussianEmission(2, 1, prior=nn.NormalInverseGamma(0.0, 0.1, 2.0, 1.0), loc=[[-1.0], [1.0]])
    return emission, truth.simulate(num_sequences, num_steps, seed=0), transition


def test_svi_finds_what_variational_bayes_finds():
    """The same priors, so nearly the same posterior."""
    emission, data, _ = two_states(5, 30)
    model = BayesianHMM(emission)
    start = init_to_value(values={"loc": emission.loc.detach()}, fallback=init_to_median)
    guide = AutoNormal(model, init_loc_fn=start)
    pyrohmm.fit_svi(model, data, guide, steps=200, learning_rate=0.1, schedule="cosine", seed=0, progress=False)
    found = pyrohmm.fit_vb(HMM(emission), data, progress=False)
    low, middle, high = guide.quantiles([0.16, 0.5, 0.84])["loc"].double()
    torch.testing.assert_close(middle, found.emission.loc, rtol=0, atol=0.05)
    torch.testing.assert_close((high - low) / 2, found.emission.mean.stddev, rtol=0.35, atol=0.0)
    torch.testing.assert_close(guide.median()["transition"].double(), found.transition.mean, rtol=0, atol=0.05)


def test_a_few_steps_of_nuts():
    emission, data, _ = two_states(3, 20)
    draws = nuts(BayesianHMM(emission, ordered=True), data, num_samples=6, warmup_steps=6)
    assert (draws["ordered_loc"].diff(dim=-1) > 0).all()
    torch.testing.assert_close(draws["ordered_loc"].mean(0), torch.tensor([-2.0, 2.0]), rtol=0, atol=0.6)


@pytest.mark.slow
def test_nuts_with_one_state_has_the_exact_posterior():
    prior = nn.NormalInverseGamma(0.0, 1.0, 3.0, 2.0)
    torch.manual_seed(1)
    data = Sequences(1.0 + torch.randn(1, 6, 1).double())
    emission = nn.GaussianEmission(1, 1, prior=prior)
    draws = nuts(BayesianHMM(emission).double(), data, num_samples=400, warmup_steps=100)
    law = pyrohmm.fit_vb(HMM(emission).double(), data, progress=False).emission
    # Some 250 effective samples: within five standard errors.
    for values, exact in ((draws["loc"], law.mean), (draws["precision"], law.precision)):
        spread = exact.stddev.item()
        assert values.mean().item() == pytest.approx(exact.mean.item(), abs=5 * spread / 250**0.5)
        assert values.std().item() == pytest.approx(spread, rel=0.35)


@pytest.mark.slow
def test_nuts_recovers_the_truth_and_its_labels_are_aligned():
    emission, data, transition = two_states(10, 30)
    chains = [nuts(BayesianHMM(emission, ordered=ordered), data, 150, 100) for ordered in (False, True)]
    free, ordered = chains
    dims = {"initial": (-1,), "transition": (-2, -1), "loc": (-2,), "precision": (-2,)}
    # A chain in the other order: as good a sample of the posterior.
    other = {name: value.flip(dims[name]) for name, value in free.items()}
    both = {name: torch.stack([free[name], other[name].roll(50, 0)]) for name in dims}
    aligned = align_draws(both, dims, "loc", sample_dims=2).draws
    before, after = (gelman_rubin(draws["loc"], chain_dim=0, sample_dim=1) for draws in (both, aligned))
    assert before.min() > 3 and after.max() < 1.05
    straight = align_draws(free, dims, "loc", reference={"loc": torch.tensor([[-2.0], [2.0]])}).draws
    for draws in ({**straight, "ordered_loc": straight["loc"].squeeze(-1)}, ordered):
        torch.testing.assert_close(draws["ordered_loc"].mean(0), torch.tensor([-2.0, 2.0]), rtol=0, atol=0.25)
        torch.testing.assert_close(draws["transition"].mean(0), transition, rtol=0, atol=0.1)
        deviation = draws["precision"].rsqrt().mean(0).flatten()
        torch.testing.assert_close(deviation, torch.ones(2), rtol=0, atol=0.2)


def test_predictive():
    for name, ordered in (("diag", True), ("full", False), ("categorical", False)):
        model, data = make(name, ordered), draw(name)
        blank = Blank(2, 5, torch.arange(2), None, None)
        prior = Predictive(model, num_samples=3)(blank)
        assert prior["z"].shape == (3, 2, 5) and prior["x"].shape == (3, 2, 5, *data.event_shape)
        _, values = prior_draw(model, data)
        draws = {k: v.expand(4, *v.shape) for k, v in values.items() if k != "loc" or not ordered}
        posterior = Predictive(model, draws)(blank)
        assert posterior["x"].shape == (4, 2, 5, *data.event_shape)


def test_labels_and_allowed_states():
    labels = torch.tensor([[0, 1, -1, 0, 1, 1], [1, -1, -1, -1, -1, -1], [0, 0, 1, 1, -1, -1]])
    data = draw("diag")
    data = Sequences(data.x, LENGTHS, mask=data.mask, labels=labels, allowed=torch.ones(3, 6, K, dtype=torch.bool))
    model = make("diag", use_labels=True)
    trace, values = prior_draw(model, data)
    expected = model.at(values).log_prob(data)
    torch.testing.assert_close(trace.nodes["time"]["fn"].log_factor.flatten(), expected.detach())
    known = model.posterior(data, AutoNormal(model)).viterbi().states
    where = (labels >= 0) & data.valid
    assert torch.equal(known[where], labels[where])


def test_at():
    model, data = make("diag", ordered=True), draw("diag")
    _, values = prior_draw(model, data)
    whole = model.at(values)
    apart = model.at({k: v for k, v in values.items() if k != "loc"})
    assert torch.equal(whole.emission.loc, apart.emission.loc) and type(whole) is HMM
    assert all(parameter.requires_grad for parameter in whole.parameters())
    with pytest.raises(ValueError, match="draw: expected a value of 'ordered_loc', got only those of 'initial', '"):
        model.at({name: values[name] for name in ("initial", "transition")})
    with pytest.raises(ValueError, match=r"draw: expected shape \(2,\) of what gives logits, got \(4, 2\)"):
        model.at({**values, "initial": values["initial"].expand(4, 2)})


def test_module():
    """Copies, states and files as of any module; nothing of a run is left in it."""
    model, data = make("diag"), draw("diag")
    poutine.trace(model).get_trace(data)
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    other.load_state_dict(model.state_dict())
    assert model.float().emission.loc.dtype == torch.float32
    prior_draw(model, Sequences(data.x.float(), LENGTHS, mask=data.mask))
    # The given parts stay as they are.
    emission = EMISSIONS["diag"]()
    BayesianHMM(emission)
    assert emission.loc.requires_grad


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: BayesianHMM(nn.GaussianEmission(2, 1)), ValueError, "prior: expected a NormalInverseGamma"),
        (lambda: BayesianHMM(nn.StudentTEmission(2, 1)), TypeError, "emission: expected a part with a conjugate prior"),
        (
            lambda: BayesianHMM(nn.BernoulliEmission(2, 1), transition=nn.NeuralTransition(2)),
            TypeError,
            "transition: expected a part with a conjugate prior, got NeuralTransition",
        ),
        (
            lambda: BayesianHMM(nn.BernoulliEmission(2, 1), transition=nn.Transition(2, nn.left_to_right(2))),
            ValueError,
            "transition: expected no mask",
        ),
        (lambda: BayesianHMM(nn.BernoulliEmission(2, 1), ordered=True), ValueError, "ordered: expected a GaussianEmi"),
        (
            lambda: BayesianHMM(
                nn.GaussianEmission(2, 1, prior=nn.NormalInverseGamma(torch.tensor([[0.0], [1.0]]), 1.0, 2.0, 1.0)),
                ordered=True,
            ),
            ValueError,
            "ordered: expected the same prior in every state",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_point_fits_are_refused():
    model, data = make("diag"), draw("diag")
    for fit in (pyrohmm.fit_em, pyrohmm.fit_vb):
        with pytest.raises(ValueError, match="model: expected "):
            fit(model, data, progress=False)
    for call in (lambda: model.potentials(data), model.filter_state, lambda: model.relabel([1, 0])):
        with pytest.raises(ValueError, match="prior|BayesianHMM"):
            call()
