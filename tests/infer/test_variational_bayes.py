import copy
import signal

import pyro.distributions as dist
import pytest
import torch

from pyrohmm import fit_em, fit_svi, fit_vb, nn
from pyrohmm.data import Sequences
from pyrohmm.infer import initialize, variational_bayes
from pyrohmm.infer.variational_bayes import expected_potentials
from pyrohmm.models import HMM
from pyrohmm.nn._conjugate import DirichletRows
from pyrohmm.testing import enumeration

D, V = 2, 4
LENGTHS = [12, 1, 30, 7]
GAMMA = nn.NormalInverseGamma(0.5, 0.2, 2.0, 1.5)
WISHART = nn.NormalInverseWishart(0.5, 0.2, 4.0, torch.tensor([[1.5, 0.5], [0.5, 1.0]]))
EMISSIONS = {
    "diag": lambda K: nn.GaussianEmission(K, D, prior=GAMMA),
    "spherical": lambda K: nn.GaussianEmission(K, D, "spherical", prior=GAMMA),
    "full": lambda K: nn.GaussianEmission(K, D, "full", prior=WISHART),
    "tied": lambda K: nn.GaussianEmission(K, D, "tied", prior=WISHART),
    "poisson": lambda K: nn.PoissonEmission(K, D, prior=dist.Gamma(2.0, 0.5)),
    "bernoulli": lambda K: nn.BernoulliEmission(K, D, prior=dist.Beta(2.0, 1.5)),
    "flat bernoulli": lambda K: nn.BernoulliEmission(K, D),
    "categorical": lambda K: nn.CategoricalEmission(K, V, prior=dist.Dirichlet(torch.full((V,), 0.5))),
    "flat categorical": lambda K: nn.CategoricalEmission(K, V),
}
every_emission = pytest.mark.parametrize("name", EMISSIONS)
with_entries = pytest.mark.parametrize("name", ["diag", "spherical", "poisson", "bernoulli"])


def make(name, K=3, sparse=0.5):
    torch.manual_seed(0)
    rows = dist.Dirichlet(sparse + 2.0 * torch.eye(K))
    return HMM(EMISSIONS[name](K), transition=nn.Transition(K, prior=rows)).double()


def draw(name, missing=True, lengths=LENGTHS):
    """Sequences that change between three levels."""
    generator = torch.Generator().manual_seed(1)
    items, masks = [], []
    for T in lengths:
        level = 2.5 * ((torch.arange(T) // 5) % 3).double().unsqueeze(-1)
        x = level + torch.randn(T, D, generator=generator, dtype=torch.float64)
        x = {"poisson": x.abs().round(), "bernoulli": (x > 1.5).double()}.get(name.removeprefix("flat "), x)
        mask = torch.rand(T, generator=generator) < 0.8 if missing else torch.ones(T, dtype=torch.bool)
        if name.endswith("categorical"):
            x = x[:, 0].round().long().clamp(0, V - 1)
        else:
            x[~mask] = torch.nan
        items.append(x)
        masks.append(mask)
    return Sequences.from_list(items, mask=masks if missing else None, dtype=items[0].dtype)


def without_entries(data):
    """With single entries missing too."""
    keep = torch.rand(data.x.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    x = torch.where(keep, data.x, torch.nan)
    return Sequences(x, data.lengths, mask=keep & data.observed.unsqueeze(-1))


def fit(model, data, **options):
    return fit_vb(model, data, **{"tolerance": 0.0, "steps": 15, "progress": False, **options})


def never_falls(found):
    bounds = torch.tensor(found.lower_bounds, dtype=torch.float64)
    return bool((bounds.diff() >= -1e-9 * bounds[0].abs()).all())


# The law of parameters at a value, by densities of torch; the value is a draw as `Conjugate.sample` returns it.


def log_density(law, values):
    if isinstance(law, dist.Dirichlet):
        return law.log_prob(values["logits"].exp()).sum()
    if isinstance(law, dist.Beta):
        return law.log_prob(values["logits"].sigmoid()).sum()
    if isinstance(law, dist.Gamma):
        return law.log_prob(values["log_rate"].exp()).sum()
    loc = values["loc"]
    if isinstance(law, nn.NormalInverseGamma):
        wide = values["variance"] if law.rate.dim() == 2 else values["variance"].unsqueeze(-1)
        mean = dist.Normal(law.loc, (wide / law.strength).sqrt()).log_prob(loc).sum()
        return mean + dist.Gamma(law.concentration, law.rate).log_prob(1 / values["variance"]).sum()
    covariance = values["covariance"]
    mean = dist.MultivariateNormal(law.loc, covariance / law.strength.unsqueeze(-1)).log_prob(loc).sum()
    wishart = dist.Wishart(law.degrees, covariance_matrix=torch.linalg.inv(law.scale))
    return mean + wishart.log_prob(torch.linalg.inv(covariance)).sum()


@every_emission
def test_exact_with_one_state(name):
    """With one state nothing is approximated: the bound is log p(x), by Bayes' rule at any parameters."""
    model, data = make(name, K=1), draw(name)
    prior = model.emission.conjugate_prior()
    found = fit(model, data, steps=2)
    assert found.lower_bounds[0] == pytest.approx(found.lower_bounds[1], rel=1e-12)
    with torch.no_grad():
        for seed in range(3):
            drawn = found.sample(seed)
            torch.manual_seed(seed)
            values = found._laws["emission"].sample()
            drawn.emission.put(values)
            joint = drawn.log_prob(data).sum() + log_density(prior.law, values)
            evidence = joint - log_density(found.emission, values)
            assert evidence.item() == pytest.approx(found.lower_bound, rel=1e-10)


def counts_log_prob(counts, concentration):
    """Of rows of counts, in order, with the probabilities integrated out."""
    total = torch.lgamma(concentration.sum(-1)) - torch.lgamma((concentration + counts).sum(-1))
    return (total + (torch.lgamma(concentration + counts) - torch.lgamma(concentration)).sum(-1)).sum()


def joint_of_path(model, x, z):
    """log p(x, z) with all parameters integrated out, of one sequence."""
    K = model.num_states
    units = torch.eye(K, dtype=torch.float64)
    moves = units[z[:-1]].mT @ units[z[1:]]
    symbols = units[z].mT @ torch.eye(V, dtype=torch.float64)[x]
    flat = torch.ones(K, dtype=torch.float64)
    return (
        counts_log_prob(units[z[0]], flat)
        + counts_log_prob(moves, model.transition.prior)
        + counts_log_prob(symbols, model.emission.prior)
    )


def test_below_the_evidence_and_equal_to_it_where_states_are_known():
    model = make("categorical", K=2)
    x = torch.tensor([[0, 0, 3, 3, 3, 1, 0]])
    joints = torch.stack([joint_of_path(model, x[0], z) for z in enumeration.paths(2, x.shape[1])])
    evidence = joints.logsumexp(0).item()
    bound = fit(make("categorical", K=2), Sequences(x), steps=50, restarts=3).lower_bound
    assert evidence - 3 < bound < evidence - 1e-3

    path = torch.tensor([[0, 0, 1, 1, 1, 0, 0]])
    known = copy.deepcopy(model)
    known.use_labels = True
    found = fit(known, Sequences(x, labels=path), steps=3)
    assert found.lower_bounds == pytest.approx([joint_of_path(model, x[0], path[0]).item()] * 3, rel=1e-12)
    # And so is the posterior.
    counts = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(found.transition.concentration, model.transition.prior + counts)


@every_emission
@pytest.mark.parametrize("missing", [False, True])
def test_never_falls(name, missing):
    found = fit(make(name), draw(name, missing), initialization="random")
    assert found.history.num_steps == 15 and never_falls(found)


@with_entries
def test_never_falls_without_single_entries(name):
    assert never_falls(fit(make(name), without_entries(draw(name)), initialization="random"))


@every_emission
def test_expected_potentials_are_means_over_parameters(name):
    """Against the mean over draws, within five standard errors."""
    model, data = make(name), draw(name, lengths=[3, 1])
    if name in ("diag", "poisson"):
        data = without_entries(data)
    found = fit(model, data, steps=2)
    expected = expected_potentials(found._model, found._gaps, data)
    drawn, draws = copy.deepcopy(found._model), []
    torch.manual_seed(3)
    with torch.no_grad():
        for _ in range(400):
            for part, law in found._laws.items():
                getattr(drawn, part).put(law.sample())
            draws.append(drawn.potentials(data))
    for values, mean in zip(zip(*draws, strict=True), expected, strict=True):
        values = torch.stack(values)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - mean).abs() <= 5 * error + 1e-9).all()


def test_result():
    model, data = make("diag"), draw("diag")
    before = torch.get_rng_state()
    found = fit(model, data, initialization="kmeans", tolerance=1e-6, steps=300)
    assert found.history.stop_reason == "converged" and found.history.loss[-1] * data.num_observed == -found.lower_bound
    assert found.initial.concentration.sum() == pytest.approx(3 + len(data), rel=1e-12)
    assert found.transition.concentration.sum() == pytest.approx((0.5 * 9 + 6) + sum(LENGTHS) - len(data), rel=1e-12)
    # Observed steps, shared out between the states.
    assert (found.emission.strength - 0.2).sum(0).tolist() == pytest.approx([data.num_observed] * D, rel=1e-8)
    # The model has the means now, and keeps working on its own.
    rows = found.transition.concentration
    torch.testing.assert_close(model.transition.log_probs().exp(), rows / rows.sum(-1, keepdim=True))
    torch.testing.assert_close(model.emission.loc, found.emission.loc)
    for key, value in found.mean().state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)
    # q(z) of the last step has the bound's entropy and normaliser: its counts are those of the posterior.
    chain = found.posterior(data)
    first = chain.marginals[:, 0].sum(0)
    torch.testing.assert_close(1 + first, found.initial.concentration, rtol=1e-3, atol=1e-3)
    # Draws differ by seed, and nothing else.
    one, same, other = (found.sample(seed).emission.loc for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_bound_of_new_sequences():
    model, data = make("poisson"), draw("poisson", missing=False)
    found, new = fit(model, data), draw("poisson", lengths=[5, 1, 8])
    with torch.no_grad():
        draws = torch.stack([found.sample(seed).log_prob(new) for seed in range(200)])
    predictive = draws.logsumexp(0) - torch.tensor(200.0).log()
    assert (found.log_prob(new) < predictive).all() and (found.log_prob(new) > predictive - 2.0).all()


def test_superfluous_states_are_emptied():
    truth = HMM(nn.GaussianEmission(2, 1, loc=[[-3.0], [3.0]])).double()
    data = truth.simulate(10, 60, seed=0)
    model = HMM(
        nn.GaussianEmission(6, 1, prior=nn.NormalInverseGamma(0.0, 0.1, 2.0, 1.0)),
        transition=nn.Transition(6, prior=dist.Dirichlet(torch.full((6,), 0.05))),
    ).double()
    found = fit(model, data, initialization="kmeans", steps=300, tolerance=1e-7)
    weight = (found.emission.strength[:, 0] - 0.1).sort().values
    assert weight[-2:].min() > 250 and weight[:4].max() < 0.01 * 600
    # The most likely parameters use them all.
    likeliest = HMM(nn.GaussianEmission(6, 1)).double()
    fit_em(likeliest, data, initialization="kmeans", progress=False)
    assert likeliest.posterior(data).marginals.sum((0, 1)).min() > 0.05 * 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_and_shortest(dtype):
    data = Sequences(torch.tensor([[[0.5]], [[1.5]]], dtype=dtype))
    model = HMM(nn.GaussianEmission(2, 1, prior=GAMMA)).to(dtype)
    found = fit(model, data)
    assert found.transition.concentration.tolist() == [[1.0, 1.0], [1.0, 1.0]]  # nothing was seen
    assert found.posterior(data).marginals.dtype == dtype and model.emission.loc.dtype == dtype
    wide = fit(HMM(nn.GaussianEmission(2, 1, prior=GAMMA, loc=[[0.0], [1.0]])), Sequences(data.x.float()))
    narrow = fit(HMM(nn.GaussianEmission(2, 1, prior=GAMMA, loc=[[0.0], [1.0]])).double(), Sequences(data.x.double()))
    assert wide.lower_bound == pytest.approx(narrow.lower_bound, rel=0.1)


def test_masks():
    forward = nn.left_to_right(3)
    model = HMM(
        EMISSIONS["diag"](3), nn.Initial(3, mask=torch.tensor([True, False, False])), nn.Transition(3, forward)
    ).double()
    found = fit(model, draw("diag"))
    assert never_falls(found)
    assert found.initial.concentration.tolist() == [1.0 + len(LENGTHS), 0.0, 0.0]
    assert torch.equal(found.transition.concentration > 0, forward)
    for one in (model, found.sample(0)):
        assert torch.equal(one.transition.log_probs().exp() > 0, forward)
    assert (found.posterior(draw("diag")).viterbi().states[:, 0] == 0).all()


def test_known_parts():
    model, data = make("diag"), draw("diag")
    for parameter in model.transition.parameters():
        parameter.requires_grad_(False)
    before = model.transition.logits.clone()
    found = fit(model, data)
    assert found.transition is None and torch.equal(model.transition.logits, before) and never_falls(found)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = fit(model, data, steps=1)
    assert found.lower_bound == pytest.approx(model.log_prob(data).sum().item(), rel=1e-12)


def test_batches_and_restarts():
    data = draw("full")
    whole, parts = (fit(make("full"), data, batch_size=size, initialization="kmeans") for size in (None, 2))
    assert parts.lower_bounds == pytest.approx(whole.lower_bounds, rel=1e-10)
    many = fit(make("full"), data, restarts=4, seed=2)
    assert len(many.history.restarts) == 4 and many.history.loss[-1] == min(many.history.restarts)
    again = fit(make("full"), data, restarts=4, seed=2)
    assert again.lower_bounds == many.lower_bounds


def test_interrupt(monkeypatch):
    model, data = make("diag"), draw("diag")
    usual, calls = variational_bayes.expect, []

    def press(*args):
        calls.append(args)
        if len(calls) == 4:  # the first one is that of the start
            signal.raise_signal(signal.SIGINT)
        return usual(*args)

    monkeypatch.setattr(variational_bayes, "expect", press)
    found = fit(model, data)
    assert found.history.stop_reason == "interrupted" and found.history.num_steps == 3
    torch.testing.assert_close(model.emission.loc, found.emission.loc)


def test_sparse_priors_have_no_mode():
    model, data = make("categorical", sparse=0.5), draw("categorical", missing=False)
    assert not model.transition.prior_has_mode
    for fitting in (fit_em, fit_svi):
        with pytest.raises(ValueError, match="model.transition: expected a prior with concentrations of at least 1"):
            fitting(model, data, steps=1, progress=False)
    # A start by an M-step is on the boundary, but finite.
    initialize(model, data)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_dirichlet_of_huge_and_tiny_concentrations():
    rows = DirichletRows(torch.tensor([[1e-8, 1e8, 0.0], [1e-3, 1e-3, 1e-3]]))
    prior = DirichletRows(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    values, gap = rows.expected()
    assert values["logits"].isfinite().all() and gap.isfinite().all() and rows.divergence(prior).isfinite()
    assert rows.divergence(rows) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model: expected a pyrohmm.models.HMM, got int"),
        ({"data": 3}, TypeError, "data: expected pyrohmm.data.Sequences, got int"),
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"tolerance": -1.0}, ValueError, "tolerance: expected a number of at least 0, got -1.0"),
        ({"model": lambda: HMM(nn.GaussianEmission(2, D))}, ValueError, "model.emission: prior: expected a NormalInv"),
        ({"model": lambda: HMM(nn.PoissonEmission(2, D))}, ValueError, "model.emission: prior: expected a Gamma"),
        (
            {"model": lambda: HMM(nn.StudentTEmission(2, D))},
            TypeError,
            "model.emission: StudentTEmission: expected a part with a conjugate prior",
        ),
        (
            {"model": lambda: HMM(EMISSIONS["diag"](2), transition=nn.NeuralTransition(2))},
            TypeError,
            "model.transition: NeuralTransition: expected a part with a conjugate prior",
        ),
    ],
)
def test_errors(change, error, message):
    change = {key: value() if callable(value) else value for key, value in change.items()}
    arguments = {"model": make("diag"), "data": draw("diag"), **change}
    with pytest.raises(error, match=message):
        fit_vb(**arguments, progress=False)


def test_more_errors():
    model = make("diag")
    model.emission.loc.requires_grad_(False)
    with pytest.raises(ValueError, match="model.emission: expected all its parameters to be trainable, or none"):
        fit(model, draw("diag"))
    with pytest.raises(ValueError, match="data: expected steps observed in whole or not at all with covariance='full'"):
        fit(make("full"), without_entries(draw("full")))
    impossible = HMM(EMISSIONS["diag"](2), transition=nn.Transition(2, torch.eye(2, dtype=torch.bool)), use_labels=True)
    x, labels = torch.zeros(2, 2, D), torch.tensor([[0, 0], [0, 1]])
    before = copy.deepcopy(impossible.state_dict())
    with pytest.raises(ValueError, match=r"got impossible ones at \[1\]"):
        fit(impossible, Sequences(x, labels=labels))
    assert all(torch.equal(before[key], value) for key, value in impossible.state_dict().items())
