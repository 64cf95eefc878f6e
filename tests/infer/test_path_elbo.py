"""PathELBO, held to the sum over all paths, and to the estimator that draws them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyrohmm import HiddenMarkovModel, MarkovChain
from pyrohmm.distributions import markov_chain, padding, statewise
from pyrohmm.infer import PathELBO
from pyrohmm.ops import chain
from pyrohmm.ops.forward_backward import api
from pyrohmm.testing import enumeration
from tests.ops.test_synchronisation import Watch, unwatched

N, T, K = 3, 4, 3
LENGTHS = torch.tensor([4, 1, 3])


class Problem:
    """A prior, potentials of a guide, Gaussian means and data, with NaN where nobody may look."""

    def __init__(self, num_states=K, num_steps=T, *, ragged=True, vectors=False, dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=dtype)

        self.num_states, self.num_steps = num_states, num_steps
        lengths = LENGTHS.clamp(max=num_steps) if ragged else torch.full((N,), num_steps)
        event = (2,) if vectors else ()
        valid = torch.arange(num_steps) < lengths.unsqueeze(-1)
        self.lengths = lengths
        self.observed = valid.clone()
        self.observed[0, 1:2] = False
        self.x = randn(N, num_steps, *event)
        self.x[~self.observed] = math.nan
        self.parameters = {
            "initial": randn(num_states),
            "transition": randn(num_states, num_states),
            "loc": randn(num_states, *event),
            "q_initial": randn(num_states),
            "q_transition": randn(num_states, num_states),
            "q_observation": randn(N, num_steps, num_states),
        }
        self.parameters["q_observation"][~valid] = math.nan
        for value in self.parameters.values():
            value.requires_grad_()

    def __getattr__(self, name):
        return self.parameters[name]

    def prior(self, lengths):
        return MarkovChain(self.initial, self.transition, lengths=lengths, num_steps=self.num_steps)

    def posterior(self, *shape, rows=slice(None)):
        unary = self.q_observation[rows]
        lengths = self.lengths[rows]
        return MarkovChain.from_potentials(
            self.q_initial,
            self.q_transition,
            unary.reshape(len(unary), *shape, *unary.shape[1:]),
            lengths=lengths.reshape(len(lengths), *shape),
        )

    def law(self, z):
        """Of an observation in a state; vectors are events."""
        loc = dist.Normal(self.loc[z], 0.7)
        return loc.to_event(1) if self.loc.dim() > 1 else loc

    # As events: sequences in dimension -1.
    def events_model(self):
        with pyro.plate("sequences", N, dim=-1):
            z = pyro.sample("z", self.prior(self.lengths))
            pyro.sample("x", self.law(z).mask(self.observed).to_event(1), obs=self.x)

    def events_guide(self):
        with pyro.plate("sequences", N, dim=-1):
            pyro.sample("z", self.posterior())

    # As plates: sequences in dimension -2, steps in dimension -1.
    def plates_model(self, rows=None):
        with pyro.plate("sequences", N, subsample=rows, dim=-2):
            rows = slice(None) if rows is None else rows
            z = pyro.sample("z", self.prior(self.lengths[rows].unsqueeze(-1)))
            with pyro.plate("time", self.num_steps, dim=-1), poutine.mask(mask=self.observed[rows]):
                pyro.sample("x", self.law(z[..., 0, :]), obs=self.x[rows])

    def plates_guide(self, rows=None):
        with pyro.plate("sequences", N, subsample=rows, dim=-2):
            pyro.sample("z", self.posterior(1, rows=slice(None) if rows is None else rows))

    def brute_force(self, rows=range(N)):
        """The ELBO: a sum over all paths."""
        total: Tensor = torch.zeros((), dtype=self.x.dtype)
        for n in rows:
            length = int(self.lengths[n])
            zeros = torch.zeros(length, self.num_states, dtype=self.x.dtype)
            paths = enumeration.paths(self.num_states, length)
            prior = enumeration.path_log_probs(
                self.initial.log_softmax(-1), self.transition.log_softmax(-1), zeros
            ).squeeze()
            guide = enumeration.path_log_probs(self.q_initial, self.q_transition, self.q_observation[n, :length])
            guide = guide.log_softmax(0)
            for t in range(length):
                if self.observed[n, t]:
                    prior = prior + self.law(paths[:, t]).log_prob(self.x[n, t])
            total = total + (guide.exp() * (prior - guide)).sum()
        return total

    def gradients(self, value):
        return torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True, materialize_grads=True)


CASES = {
    "ragged": {},
    "vectors": {"vectors": True},
    "as many entries as steps": {"vectors": True, "num_steps": 2},
    "whole": {"ragged": False},
    "one state": {"num_states": 1},
    "one step": {"num_steps": 1},
    "neither": {"num_states": 1, "num_steps": 1},
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("form", ["events", "plates"])
@pytest.mark.parametrize("case", CASES)
def test_against_all_paths(case, form, validate):
    problem = Problem(**CASES[case])
    model, guide = (getattr(problem, f"{form}_{kind}") for kind in ("model", "guide"))
    with pyro.validation_enabled(validate):
        loss = PathELBO().differentiable_loss(model, guide)
    expected = -problem.brute_force()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(problem.gradients(loss), problem.gradients(expected))
    assert PathELBO().loss(model, guide) == pytest.approx(expected.item())


def test_float32():
    problem = Problem(dtype=torch.float32)
    loss = PathELBO().differentiable_loss(problem.plates_model, problem.plates_guide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -problem.brute_force())


@pytest.mark.parametrize("options", [{"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}], ids=str)
@pytest.mark.parametrize("form", ["events", "plates"])
def test_particles_are_all_the_same(form, options):
    problem = Problem()
    model, guide = (getattr(problem, f"{form}_{kind}") for kind in ("model", "guide"))
    loss = PathELBO(**options).differentiable_loss(model, guide)
    expected = -problem.brute_force()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(problem.gradients(loss), problem.gradients(expected))


def test_minibatches_and_scales():
    problem = Problem()
    rows = torch.tensor([0, 2])
    loss = PathELBO().differentiable_loss(
        poutine.scale(problem.plates_model, 0.5), poutine.scale(problem.plates_guide, 0.5), rows
    )
    expected = -0.5 * N / 2 * problem.brute_force(rows.tolist())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(problem.gradients(loss), problem.gradients(expected))


def test_scale_of_the_path_alone_is_that_of_the_divergence():
    problem, factor = Problem(), 0.25

    plain = PathELBO().differentiable_loss(problem.events_model, problem.events_guide)

    def model():
        with pyro.plate("sequences", N, dim=-1):
            with poutine.scale(scale=factor):
                z = pyro.sample("z", problem.prior(problem.lengths))
            pyro.sample("x", problem.law(z).mask(problem.observed).to_event(1), obs=problem.x)

    def guide():
        with pyro.plate("sequences", N, dim=-1), poutine.scale(scale=factor):
            pyro.sample("z", problem.posterior())

    divergence = torch.distributions.kl_divergence(problem.posterior(), problem.prior(problem.lengths)).sum()
    annealed = PathELBO().differentiable_loss(model, guide)
    torch.testing.assert_close(annealed, plain - (1 - factor) * divergence)


def test_masked_sequences_and_factors():
    problem, keep = Problem(), torch.tensor([True, False, True])
    weight = torch.randn(K, dtype=torch.float64)

    def model():
        with pyro.plate("sequences", N, dim=-2), poutine.mask(mask=keep.unsqueeze(-1)):
            z = pyro.sample("z", problem.prior(problem.lengths.unsqueeze(-1)))
            with pyro.plate("time", T, dim=-1):
                pyro.factor("likes", weight[z[..., 0, :]])

    def guide():
        with pyro.plate("sequences", N, dim=-2), poutine.mask(mask=keep.unsqueeze(-1)):
            pyro.sample("z", problem.posterior(1))

    q, p = problem.posterior(), problem.prior(problem.lengths)
    expected = q.expectation(weight) - torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(PathELBO().differentiable_loss(model, guide), -expected[keep].sum())


def hierarchical(problem):
    """A latent h_t given z_t, and a latent c before everything; x_t given h_t. The guide's q(z) depends on c."""
    noise = torch.randn(N, T, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(N, T, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    valid = torch.arange(T) < problem.lengths.unsqueeze(-1)

    def model():
        c = pyro.sample("c", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("sequences", N, dim=-2):
            z = pyro.sample("z", problem.prior(problem.lengths.unsqueeze(-1)))
            with pyro.plate("time", T, dim=-1), poutine.mask(mask=valid):
                h = pyro.sample("h", dist.Normal(problem.loc[z[..., 0, :]] + c, 0.7))
                pyro.sample("x", dist.Normal(h.tanh(), 0.5), obs=x)

    def guide():
        c = pyro.sample("c", dist.Normal(torch.tensor(0.3, dtype=torch.float64), 0.2))
        with pyro.plate("sequences", N, dim=-2):
            q = problem.posterior(1)
            q = MarkovChain.from_potentials(
                q.initial_logits, q.transition_logits, q.observation_logits * (1 + c), lengths=q.lengths
            )
            pyro.sample("z", q)
            with pyro.plate("time", T, dim=-1), poutine.mask(mask=valid):
                pyro.sample("h", dist.Normal(0.4 * noise, 0.6))

    return model, guide


def test_other_latent_sites_are_drawn():
    problem = Problem()
    model, guide = hierarchical(problem)
    pyro.set_rng_seed(0)
    loss = PathELBO().differentiable_loss(model, guide)
    # The guess of the plates, at the first call, draws too.
    elbo = PathELBO(max_plate_nesting=2)
    pyro.set_rng_seed(0)
    assert elbo.differentiable_loss(model, guide) != loss
    pyro.set_rng_seed(0)
    loss = elbo.differentiable_loss(model, guide)
    # The same draws, as z is none.
    pyro.set_rng_seed(0)
    drawn = poutine.trace(poutine.condition(guide, {"z": torch.zeros(N, 1, T, dtype=torch.int64)})).get_trace()
    c, h = drawn.nodes["c"], drawn.nodes["h"]
    q, p = drawn.nodes["z"]["fn"], problem.prior(problem.lengths.unsqueeze(-1))
    states = dist.Normal(problem.loc + c["value"], 0.7).log_prob(h["value"].unsqueeze(-1)).unsqueeze(1)
    others = poutine.trace(poutine.condition(model, {"z": torch.zeros(1, 1, T, dtype=torch.int64), "h": h["value"]}))
    others = others.get_trace()
    drawn.compute_log_prob()
    others.compute_log_prob()
    expected = (
        q.expectation(states).sum()
        - torch.distributions.kl_divergence(q, p).sum()
        + others.nodes["x"]["log_prob_sum"]
        + dist.Normal(torch.zeros_like(c["value"]), 1.0).log_prob(c["value"])
        - c["log_prob_sum"]
        - h["log_prob_sum"]
    )
    torch.testing.assert_close(loss, -expected)
    torch.testing.assert_close(problem.gradients(loss), problem.gradients(-expected))


def test_gradient_has_less_variance_than_the_score_function():
    """Both estimates have the same mean; that of PathELBO is the same at each draw."""
    problem = Problem(seed=3)
    expected = torch.cat([g.flatten() for g in problem.gradients(-problem.brute_force())])

    def estimates(elbo, count):
        found = []
        for seed in range(count):
            pyro.set_rng_seed(seed)
            loss = elbo.differentiable_loss(problem.events_model, problem.events_guide)
            found.append(torch.cat([g.flatten() for g in problem.gradients(loss)]))
        return torch.stack(found)

    read = ~problem.q_observation.isnan()
    # The plain estimator cannot do with NaN in the padding and in what is missing.
    problem.x = problem.x.nan_to_num()
    with torch.no_grad():
        problem.q_observation.nan_to_num_()
    exact, drawn = estimates(PathELBO(), 5), estimates(Trace_ELBO(), 200)
    assert read.any()
    torch.testing.assert_close(exact, expected.expand(5, -1))
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - expected).abs() < 5 * error + 1e-9).all()
    assert exact.var(0).sum() < 1e-20 < 0.1 < drawn.var(0).sum()


def test_free_potentials_reach_the_exact_posterior():
    problem = Problem()
    hmm = HiddenMarkovModel(problem.prior(problem.lengths), dist.Normal(problem.loc, 0.7))
    with torch.no_grad():
        evidence = hmm.log_prob(problem.x, problem.observed)
        posterior = hmm.posterior(problem.x, problem.observed)

    def guide():
        with pyro.plate("sequences", N, dim=-1):
            unary = pyro.param("unary", torch.zeros(N, T, K, dtype=torch.float64))
            edges = pyro.param("edges", torch.zeros(N, T - 1, K, K, dtype=torch.float64))
            pyro.sample("z", MarkovChain.from_potentials(unary[:, 0], edges, unary, lengths=problem.lengths))

    def model():
        with poutine.block(hide_types=["param"]):
            problem.events_model()

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1, "betas": (0.9, 0.95)}), PathELBO())
    with pyro.validation_enabled(False):
        losses = [svi.step() for _ in range(250)]
    assert losses[0] + evidence.sum() > 10.0
    assert abs(losses[-1] + evidence.sum()) < 1e-3
    unary, edges = (pyro.param(name).detach() for name in ("unary", "edges"))
    found = MarkovChain.from_potentials(unary[:, 0], edges, unary, lengths=problem.lengths)
    torch.testing.assert_close(found.marginals, posterior.marginals, atol=0.01, rtol=0)
    pyro.clear_param_store()


def test_guide_without_a_path_is_the_worst():
    problem = Problem(ragged=False)

    def guide():
        with pyro.plate("sequences", N, dim=-1):
            impossible = problem.q_observation.masked_fill(torch.arange(T).unsqueeze(-1) == 1, -math.inf)
            q = MarkovChain.from_potentials(problem.q_initial, problem.q_transition, impossible)
            pyro.sample("z", q)

    def model():
        with pyro.plate("sequences", N, dim=-1):
            z = pyro.sample("z", problem.prior(None))
            pyro.sample("x", problem.law(z).mask(problem.observed).to_event(1), obs=problem.x)

    assert PathELBO().loss(model, guide) == math.inf


# What is refused


def refused(model, guide, message, validate=True):
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message):
        PathELBO().loss(model, guide)


PRIOR = MarkovChain(torch.zeros(2), torch.eye(2), num_steps=5)


def path_guide():
    pyro.sample("z", PRIOR)


OTHER_STEPS = {
    "step before": lambda z: torch.nn.functional.pad(z[..., :-1], (1, 0)),
    "running sum": lambda z: z.cumsum(-1),
    "reversed": lambda z: z.flip(-1),
    "whole path": lambda z: z.sum(-1, keepdim=True).expand_as(z),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("case", OTHER_STEPS)
def test_other_steps_are_noticed_at_the_first_call(case, validate):
    def model():
        z = pyro.sample("z", PRIOR)
        pyro.sample("x", dist.Normal(OTHER_STEPS[case](z).float(), 1.0).to_event(1), obs=torch.zeros(5))

    refused(model, path_guide, "'x': expected a function of the state at each step, but", validate)


def test_a_path_that_was_not_tried_before_is_tried_where_validation_is_on():
    seen = []

    class Watched(PathELBO):
        def _probe(self, chain):
            seen.append(super()._probe(chain))
            return seen[-1]

    def model():
        z = pyro.sample("z", PRIOR)
        pyro.sample("x", dist.Normal(z.float(), 1.0).to_event(1), obs=torch.zeros(5))

    elbo = Watched()
    for validate, expected in ((False, 1), (False, 1), (True, 2), (True, 3)):
        with pyro.validation_enabled(validate):
            elbo.loss(model, path_guide)
        assert len(seen) == expected
    assert len({tuple(path.tolist()) for path in seen}) > 1


def test_noise_of_the_program_is_no_dependence():
    dropout = torch.nn.Dropout(0.5)
    table = torch.ones(2)

    def model():
        z = pyro.sample("z", PRIOR)
        pyro.sample("x", dist.Normal(dropout(table[z]), 1.0).to_event(1), obs=torch.zeros(5))

    assert math.isfinite(PathELBO().loss(model, path_guide))


def test_sites_without_steps_are_refused():
    def last_state():
        z = pyro.sample("z", PRIOR)
        pyro.sample("y", dist.Normal(z[..., -1].float(), 1.0), obs=torch.tensor(0.0))

    def half():
        z = pyro.sample("z", PRIOR)
        pyro.sample("y", dist.Normal(z[..., ::2].float(), 1.0).to_event(1), obs=torch.zeros(3))

    for model in (last_state, half):
        refused(model, path_guide, "'y': expected a function of the state at each step, with 5 steps", False)


def test_guides_that_do_not_fit():
    def model():
        z = pyro.sample("z", PRIOR)
        h = pyro.sample("h", dist.Normal(z.float(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=torch.zeros(5))

    def dependent():
        z = pyro.sample("z", PRIOR)
        pyro.sample("h", dist.Normal(torch.tensor([0.0, 1.0])[z], 1.0).to_event(1))

    def two():
        pyro.sample("z", PRIOR)
        pyro.sample("y", PRIOR)

    def none():
        pyro.sample("h", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    def other():
        pyro.sample("u", PRIOR)
        pyro.sample("h", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    refused(model, dependent, "guide: expected sites that do not depend on 'z', which is summed out, got 'h'")
    refused(model, two, r"guide: expected one latent site that is a MarkovChain, got \['z', 'y'\]")
    refused(model, none, r"guide: expected one latent site that is a MarkovChain, got \[\]")
    refused(model, other, "model: expected a MarkovChain at site 'u', as in the guide, got none", False)
    refused(model, path_guide, "guide: expected a site 'h', which is latent in the model, got none", False)


def test_random_state_does_not_depend_on_validation():
    problem = Problem()
    model, guide = hierarchical(problem)
    losses = []
    for validate in (True, False):
        pyro.set_rng_seed(0)
        elbo = PathELBO()
        with pyro.validation_enabled(validate):
            losses.append([elbo.loss(model, guide) for _ in range(3)])
    assert losses[0] == losses[1]


def test_does_not_wait_for_the_device(monkeypatch):
    for module in (padding, statewise, markov_chain):
        monkeypatch.setattr(module, "waits", lambda tensor: True)
    for module, name in ((chain, "check_lengths"), (chain, "clear_padding"), (api, "clear_padding")):
        monkeypatch.setattr(module, name, unwatched(getattr(module, name)))
    problem = Problem()
    elbo = PathELBO()
    with pyro.validation_enabled(False):
        elbo.loss(problem.plates_model, problem.plates_guide)
        for parameter in problem.parameters.values():
            parameter.grad = None
        with Watch() as watch:
            loss = elbo.loss_and_grads(problem.plates_model, problem.plates_guide)
    assert not watch.waited
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(loss, -problem.brute_force().detach())
