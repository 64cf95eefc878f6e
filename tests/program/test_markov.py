"""The collapsed loop against the sequential program under Pyro's own enumeration, and what it refuses."""

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.inspect import get_dependencies

import pyrohmm
from tests.program.programs import CASES, SWITCHING, B, Case, D, K, T, normal, switching


def loss_and_grads(case: Case, elbo, vectorized: bool) -> tuple[float, dict[str, torch.Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(7)
    loss = elbo(**case.options).differentiable_loss(case.model, case.guide, *case.args, vectorized=vectorized)
    store = pyro.get_param_store()
    params = {name: store.get_param(name).unconstrained() for name in store}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(params, grads, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_elbo_and_gradient_equal_those_of_the_enumerated_sequential_program(name):
    case = CASES[name]
    elbo = TraceEnum_ELBO if case.enumerates_outside else Trace_ELBO
    loss, grads = loss_and_grads(case, elbo, vectorized=True)
    expected_loss, expected = loss_and_grads(case, TraceEnum_ELBO, vectorized=False)
    assert loss == pytest.approx(expected_loss, rel=1e-9, abs=1e-9)
    assert grads.keys() == expected.keys()
    assert any(grad.abs().max() > 1e-3 for grad in grads.values())
    for site, grad in grads.items():
        torch.testing.assert_close(grad, expected[site], rtol=1e-6, atol=1e-9, msg=lambda m, s=site: f"{s}: {m}")


def test_body_runs_twice():
    runs = []
    for t in pyrohmm.markov("time", 7):
        runs.append(t)
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(7)[t])
    assert runs == [slice(0, 1), slice(1, 7)]


def test_harmless_leftover_of_the_first_state_is_accepted():
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    x = torch.tensor([0.1, 0.3, 1.2, 0.7])

    def model(vectorized=True):
        z = None
        for t in pyrohmm.markov("time", 4, vectorized=vectorized):
            before = z
            z = pyro.sample("z", dist.Categorical(torch.ones(2) if before is None else transition[before]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[t])

    expected = TraceEnum_ELBO().loss(lambda: model(vectorized=False), lambda: None)
    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(expected)


def test_nested_loops():
    """A segment's state chooses the frames' chain: the inner loop is one factor of the outer one."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outer = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
    inner = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loc = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)

    def model(vectorized=True):
        with pyro.plate("sequences", 2, dim=-3):
            s = None
            for t in pyrohmm.markov("segments", 3, dim=-2, vectorized=vectorized):
                s = pyro.sample("s", dist.Categorical(outer[0] if s is None else outer[s]))
                z = None
                for u in pyrohmm.markov("frames", 4, dim=-1, vectorized=vectorized):
                    z = pyro.sample("z", dist.Categorical(inner[s, 0] if z is None else inner[s, z]))
                    pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t, u])

    expected = TraceEnum_ELBO(max_plate_nesting=3).loss(lambda: model(vectorized=False), lambda: None)
    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(expected, rel=1e-10)


def test_conditioned_program_equals_one_with_data():
    x = torch.randn(2, 5, 3)
    loc = torch.randn(2, 3)

    def model(x=None):
        with pyro.plate("sequences", 2, dim=-2):
            for t in pyrohmm.markov("time", 5, dim=-1):
                z = pyro.sample("z", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=None if x is None else x[:, t])

    given = poutine.trace(model).get_trace(x).log_prob_sum()
    torch.testing.assert_close(poutine.trace(pyro.condition(model, {"x": x})).get_trace().log_prob_sum(), given)


def switching_by_enumeration(x, lengths, observed, h):
    """log p(x, h) of `programs.switching`: each sequence's paths of states one by one."""
    store = {name: pyro.param(name) for name in ("initial", "transition", "pull", "turn", "back")}
    first, back = store["initial"].log_softmax(-1), store["back"]
    total = []
    for n, length in enumerate(lengths.tolist()):
        scores = []
        for path in product(range(K), repeat=length):
            before, score = torch.zeros(D, dtype=x.dtype), 0.0
            for t, k in enumerate(path):
                row = first if t == 0 else (store["transition"][path[t - 1]] + before @ back).log_softmax(-1)
                loc = 0.5 * store["turn"][k] @ before + store["pull"][k]
                score = score + row[k] + dist.Normal(loc, 0.8).log_prob(h[n, t]).sum()
                if observed[n, t]:
                    score = score + dist.Normal(h[n, t].sum(), 0.5).log_prob(x[n, t])
                before = h[n, t]
            scores.append(score)
        total.append(torch.stack(scores).logsumexp(0))
    return torch.stack(total)


def proposed(h, event_dim=2):
    """A guide whose path is h, and what Pyro makes of a run of it."""
    return poutine.trace(lambda: pyro.sample("h", dist.Delta(h, event_dim=event_dim))).get_trace()


@pytest.mark.parametrize("vectorized", [True, False])
def test_path_of_a_guide_against_enumeration(vectorized):
    x, lengths, observed = SWITCHING
    pyro.clear_param_store()
    path = normal(B, T, D, seed=9).requires_grad_()
    valid = torch.arange(T) < lengths.unsqueeze(-1)
    # Nobody reads the padding, but for Pyro's Delta where it is scored.
    h = torch.where(valid.unsqueeze(-1), path, torch.nan if vectorized else 0.0)
    program = poutine.replay(switching, trace=proposed(h.unsqueeze(1)))
    if vectorized:
        trace = poutine.trace(program).get_trace(*SWITCHING)
        factor = trace.nodes["time"]["fn"].log_factor.squeeze(-1)
        assert trace.nodes["h"]["value"].shape == (B, 1, T, D) and not trace.nodes["h"]["is_observed"]
        assert {name for name, site in trace.nodes.items() if site["type"] == "sample"} == {"sequences", "time", "h"}
    else:

        def guide(*args, **kwargs):
            with pyro.plate("sequences", B, dim=-2):
                pyro.sample("h", dist.Delta(h.unsqueeze(1), event_dim=2))

        factor = -TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss(
            switching, guide, *SWITCHING, vectorized=False
        )
    expected = switching_by_enumeration(x, lengths, observed, path)
    torch.testing.assert_close(factor, expected if vectorized else expected.sum())
    leaves = [path, *(pyro.param(name) for name in ("initial", "transition", "pull", "turn", "back"))]
    grads, wanted = (torch.autograd.grad(value.sum(), leaves) for value in (factor, expected))
    for grad, want in zip(grads, wanted, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(grad, want)


def test_a_guides_path_may_have_the_shape_of_data():
    pyro.clear_param_store()
    h = normal(B, T, D)
    shapes = [(h, 2), (h, 1), (h, 3), (h.unsqueeze(1), 2)]
    found = [
        poutine.trace(poutine.replay(switching, trace=proposed(*shape))).get_trace(*SWITCHING).log_prob_sum()
        for shape in shapes
    ]
    for value in found[1:]:
        torch.testing.assert_close(value, found[0])
    with pytest.raises(ValueError, match=r"'h' in loop 'time': expected a guide that samples all 5 steps.*\(3, 4, 2\)"):
        poutine.replay(switching, trace=proposed(h[:, :4]))(*SWITCHING)


def test_a_path_of_float32():
    data = tuple(value.float() if value.is_floating_point() else value for value in SWITCHING)
    pyro.clear_param_store()
    shapes = {"initial": (K,), "transition": (K, K), "pull": (K, D), "turn": (K, D, D), "back": (D, K)}
    for name, shape in shapes.items():
        pyro.param(name, normal(*shape).float())
    trace = poutine.trace(poutine.replay(switching, trace=proposed(normal(B, T, D).float()))).get_trace(*data)
    assert trace.nodes["time"]["fn"].log_factor.dtype == torch.float32
    assert trace.log_prob_sum().isfinite()


@pytest.mark.parametrize("vectorized", [True, False])
def test_previous_shows_conditioned_and_proposed_paths(vectorized):
    h, seen = torch.arange(1.0, 5.0), []

    def program():
        for t in pyrohmm.markov("time", 4, vectorized=vectorized):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("h", dist.Normal(0.0, 1.0))
            seen.append(pyrohmm.previous("h", None, t, lag=2, initial=-1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])

    for known in (pyro.condition(program, {"h": h}), poutine.replay(program, trace=proposed(h, 1))):
        seen.clear()
        poutine.trace(known).get_trace()
        assert torch.cat(seen).tolist() == [-1.0, -1.0, 1.0, 2.0]


def test_a_path_of_an_earlier_step_by_variable_is_refused():
    def program():
        h = torch.zeros(())
        for t in pyrohmm.markov("time", 4):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            h = pyro.sample("h", dist.Normal(h, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match=r"write pyrohmm.previous\('h', data, t\)"):
        poutine.trace(poutine.replay(program, trace=proposed(torch.zeros(4), 1))).get_trace()


def test_a_switching_program_simulates():
    pyro.clear_param_store()

    def program():
        with pyro.plate("sequences", 4, dim=-2):
            start = torch.zeros(2)
            for t in pyrohmm.markov("time", 6, dim=-1, lengths=torch.tensor([6, 1, 3, 0])):
                pyro.sample("z", dist.Categorical(torch.ones(2)))
                h = pyro.sample("h", dist.Normal(pyrohmm.previous("h", None, t, initial=start) + 1, 1e-3).to_event(1))
                pyro.sample("x", dist.Normal(h.sum(-1), 1e-3))

    nodes = poutine.trace(program).get_trace().nodes
    sites = {name: nodes[name]["value"] for name in ("h", "x")}
    assert sites["h"].shape == (4, 6, 2) and sites["x"].shape == (4, 6)
    assert ((sites["x"][0] - 2 * torch.arange(1, 7)).abs() < 0.1).all()


def test_a_proposed_path_in_a_nested_loop_is_refused():
    def program():
        for t in pyrohmm.markov("time", 2, dim=-2):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            for s in pyrohmm.markov("inner", 3, dim=-1):
                pyro.sample("w", dist.Categorical(torch.ones(2)))
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(h, 1.0), obs=torch.zeros(2, 3)[t, s])

    with pytest.raises(ValueError, match="'h' in loop 'inner' is neither observed"):
        poutine.trace(poutine.replay(program, trace=proposed(torch.zeros(2, 3)))).get_trace()


def test_intervention_on_a_site_of_the_body_is_refused():
    case = CASES["plain"]
    with pytest.raises(ValueError, match=r"'x' in loop 'time': expected no poutine.do.*x_0"):
        poutine.do(case.model, {"x": case.args[0]})(*case.args)


def test_outer_class_that_differs_within_the_chain_is_refused():
    """Each tone has its class, and one chain sees all tones: the sum over states does not factor."""
    tones = pyro.plate("tones", 2, dim=-1)

    def model():
        with tones:
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        for t in pyrohmm.markov("time", 3, dim=-2):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            with tones:
                pyro.sample("x", dist.Normal(c + z, 1.0), obs=torch.zeros(3, 2)[t])

    with pytest.raises(ValueError, match=r"'c' is enumerated separately along dimension\(s\) \[-1\]"):
        TraceEnum_ELBO(max_plate_nesting=2).loss(model, lambda: None)


def test_potentials_of_different_precision_are_promoted():
    x, loc = torch.randn(4, dtype=torch.float64), torch.tensor([-1.0, 1.0])

    def evidence(weights):
        def model():
            for t in pyrohmm.markov("time", 4):
                z = pyro.sample("z", dist.Categorical(weights))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])

        return poutine.trace(model).get_trace().log_prob_sum()

    torch.testing.assert_close(evidence(torch.ones(2)), evidence(torch.ones(2, dtype=torch.float64)), rtol=1e-6, atol=0)


def test_data_at_later_steps_only_need_a_factor_at_the_first():
    x = torch.randn(5)

    def model(start):
        z = None
        for t in pyrohmm.markov("time", 5):
            first, transition = z is None, torch.tensor([[0.9, 0.1], [0.3, 0.7]])
            z = pyro.sample("z", dist.Categorical(torch.ones(2) if first else transition[z]))
            if not first:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[t])
            elif start:
                pyro.factor("start", torch.zeros(()))

    with pytest.raises(ValueError, match="something observed at the first step, as site 'x' is at the later ones"):
        model(False)
    # The first state has probabilities 0.5, 0.5, so the second has 0.6, 0.4.
    potentials = torch.tensor([0.6, 0.4]).log(), torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    observation = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x[1:, None])
    expected = pyrohmm.ops.log_partition(*potentials, observation)
    torch.testing.assert_close(poutine.trace(model).get_trace(True).log_prob_sum(), expected)


def test_pyros_view_of_dependencies():
    case = CASES["global latent, amortised guide"]
    pyro.clear_param_store()
    found = get_dependencies(case.model, case.args)
    assert found["prior_dependencies"] == {"h": {"h": set()}, "time": {"time": set(), "h": set()}}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_tracing_by_jit_is_refused():
    case = CASES["plain"]
    with pytest.raises(NotImplementedError, match="instead of JitTrace_ELBO"):
        JitTrace_ELBO(ignore_jit_warnings=True).loss_and_grads(case.model, case.guide, *case.args)


def test_no_site_of_the_body_and_one_factor_in_the_trace():
    case = CASES["plain"]
    trace = poutine.trace(case.model).get_trace(*case.args)
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "sequences"]
    assert sites == ["time"]
    assert trace.nodes["time"]["is_observed"]
    trace.compute_log_prob()
    assert trace.nodes["time"]["log_prob"].shape == (3, 1)


def test_gradient_is_finite_and_padding_unread_for_ragged_nan_data():
    case = CASES["ragged, masked"]
    _, grads = loss_and_grads(case, Trace_ELBO, vectorized=True)
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("lengths", [[1, 1, 1], [0, 1, 0], [0, 0, 0], [5, 5, 5]])
def test_extreme_lengths(lengths):
    lengths = torch.tensor(lengths)
    case = CASES["ragged, masked"]
    x, _, mask = case.args
    x = torch.where((torch.arange(5) < lengths.unsqueeze(-1)).unsqueeze(-1), x.nan_to_num(0.3), torch.nan)
    case = Case(case.model, case.guide, (x, lengths, mask))
    loss, grads = loss_and_grads(case, Trace_ELBO, vectorized=True)
    expected_loss, expected = loss_and_grads(case, TraceEnum_ELBO, vectorized=False)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for site, grad in grads.items():
        torch.testing.assert_close(grad, expected[site], rtol=1e-6, atol=1e-9)


# What the loop refuses, and the hint in its message.


def run(body, num_steps=4, **kwargs):
    z = None
    for t in pyrohmm.markov("time", num_steps, **kwargs):
        z = body(t, z)


def state(z, num_states=2):
    return pyro.sample("z", dist.Categorical(torch.ones(num_states)))


def test_second_order_state_is_refused():
    second = torch.rand(2, 2, 2)

    def model():
        one = two = None
        for t in pyrohmm.markov("time", 4):
            if one is None:
                probs = second[0, 0]
            elif two is None:
                probs = second[0][one]
            else:
                probs = second[two, one]
            z = pyro.sample("z", dist.Categorical(probs))
            two, one = one, z
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="two steps ago"):
        model()


def test_state_kept_in_a_list_and_used_two_steps_later_is_refused():
    loc = torch.zeros(2, 2)

    def model():
        states = []
        for t in pyrohmm.markov("time", 4):
            states.append(pyro.sample("z", dist.Categorical(torch.ones(2))))
            mean = loc[states[-3], states[-1]] if len(states) > 2 else 0.0
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="two steps ago"):
        model()


@pytest.mark.parametrize("form", ["code", "memory", "attribute"])
def test_older_state_in_what_is_computed_from_it_is_refused(form):
    table = torch.rand(4, 2)

    class Holder:
        one = two = None

    def model():
        held, code, memory, before = Holder(), None, torch.zeros(()), None
        for t in pyrohmm.markov("time", 4):
            if form == "attribute" and held.two is not None:
                probs = table[2 * held.two + held.one]
            elif form == "code" and code is not None:
                probs = table[code]
            else:
                probs = torch.ones(2)
            z = pyro.sample("z", dist.Categorical(probs))
            held.two, held.one = held.one, z
            code, before = z if before is None else 2 * before + z, z
            memory = torch.tanh(memory + z) if form == "memory" else torch.zeros(())
            pyro.sample("x", dist.Normal(memory, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="two steps ago"):
        model()


@pytest.mark.parametrize(
    "use",
    [
        lambda z: 1.0 if z == 1 else 0.0,
        lambda z: 1.0 if z else 0.0,
        lambda z: [0.0, 1.0][z],
        lambda z: float(z),
        lambda z: float(z.item()),
        lambda z: float(z.tolist()[0]),
        lambda z: 1.0 if (z + 1) > 1 and True else 0.0,
        lambda z: 1.0 if (z == 0) & (z == 1) else 0.0,
    ],
)
@pytest.mark.parametrize("num_states", [1, 2])
def test_branch_on_a_state_is_refused(use, num_states):
    def body(t, z):
        z = state(z, num_states)
        pyro.sample("x", dist.Normal(use(z), 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="'z' has no single value in loop 'time'.*torch.where"):
        run(body)


def test_conditions_on_a_state_within_tensors_are_fine():
    def body(t, z):
        z = state(z)
        assert z.shape[0] == 2 and z.dim() > 1 and (z >= 0).all()
        loc = torch.where((z == 1) | (z > 5), 1.0, -1.0) + torch.nn.functional.one_hot(z, 2).float().sum(-1)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.zeros(4)[t])

    run(body)


def test_unobserved_continuous_site_beside_data_is_refused():
    def latent_first(t, z):
        z = state(z)
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h, 1.0), obs=torch.zeros(4)[t])

    def latent_last(t, z):
        z = state(z)
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])
        pyro.sample("h", dist.Normal(0.0, 1.0))

    for body in (latent_first, latent_last):
        with pytest.raises(
            ValueError,
            match="'h' in loop 'time' is neither observed nor enumerable.*Let a guide sample 'h' as one site",
        ):
            run(body)


def test_different_supports_are_refused():
    def body(t, z):
        z = state(z, 2 if t.start == 0 else 3)
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="'z' in loop 'time': expected 2 states at the later steps.*got 3"):
        run(body)


def test_different_state_sites_are_refused():
    def other_name(t, z):
        pyro.sample("z" if t.start == 0 else "w", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])

    def fewer(t, z):
        if t.start == 0:
            pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])

    for body in (other_name, fewer):
        with pytest.raises(ValueError, match=r"expected the state sites \['z'\] of the first step"):
            run(body)


def test_previous_observation_by_variable_is_refused():
    def model():
        x = torch.zeros(())
        for t in pyrohmm.markov("time", 4):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            hidden = torch.tanh(2 * x)
            x = pyro.sample("x", dist.Normal(hidden, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match=r"observed site 'x'.*pyrohmm.previous\('x'"):
        model()


def test_state_used_after_the_loop_is_refused():
    def model():
        for t in pyrohmm.markov("time", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t])
        assert (x + 1).shape == (3,)  # data stay data
        return torch.ones(2)[z]

    with pytest.raises(ValueError, match="after loop 'time'"):
        model()


def test_loop_without_a_state_is_refused():
    with pytest.raises(ValueError, match="at least one unobserved discrete state site"):
        run(lambda t, z: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4)[t]))


def test_unsliced_data_are_refused():
    def body(t, z):
        z = state(z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    with pytest.raises(ValueError, match=r"'x': expected 1 step\(s\) at the time dimension -1, got 4.*slice"):
        run(body)


def test_site_sampled_twice_is_refused():
    def body(t, z):
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("z", dist.Categorical(torch.ones(2)))

    with pytest.raises(ValueError, match="'z' is sampled twice"):
        run(body)


def test_state_sites_in_different_plates_are_refused():
    def model():
        for t in pyrohmm.markov("time", 4, dim=-2):
            a = pyro.sample("a", dist.Categorical(torch.ones(2)))
            with pyro.plate("tones", 3, dim=-1):
                b = pyro.sample("b", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(4, 3)[t])

    with pytest.raises(ValueError, match="must share the plates"):
        model()


def test_different_scales_are_refused():
    def body(t, z):
        z = state(z)
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4)[t])

    with pytest.raises(ValueError, match="share a scale"):
        run(body)


def test_mask_around_the_loop_that_varies_in_time_is_refused():
    with poutine.mask(mask=torch.ones(4, dtype=torch.bool)), pytest.raises(ValueError, match="in the body"):
        pyrohmm.markov("time", 4)


def test_plate_at_the_time_dimension_is_refused():
    def model():
        with pyro.plate("sequences", 3, dim=-1):
            for _ in pyrohmm.markov("time", 4, dim=-1):
                pass

    with pytest.raises(ValueError, match="collide at dim=-1"):
        model()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"name": ""}, TypeError, "name"),
        ({"num_steps": 0}, ValueError, "num_steps: expected an integer >= 1, got 0"),
        ({"dim": 0}, ValueError, "dim: expected a negative integer, got 0"),
        ({"lengths": torch.tensor([1.0])}, TypeError, "lengths: expected an int64 tensor"),
        ({"lengths": torch.tensor([1, 5])}, ValueError, r"lengths: expected values in 0..4, got 5 at index \(1,\)"),
    ],
)
def test_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        pyrohmm.markov(**({"name": "time", "num_steps": 4} | kwargs))


def test_lengths_must_fit_the_plates():
    with pyro.plate("sequences", 3, dim=-2), pytest.raises(ValueError, match="expected size 3"):
        pyrohmm.markov("time", 4, dim=-1, lengths=torch.tensor([4, 4]))


# previous


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("lag", [1, 2, 7])
def test_previous(vectorized, lag):
    x = torch.arange(10.0).reshape(2, 5)
    initial = torch.tensor(-1.0)
    seen = []
    for t in pyrohmm.markov("time", 5, dim=-1, vectorized=vectorized):
        seen.append(pyrohmm.previous("x", x, t, lag=lag, initial=initial))
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, t])
    expected = torch.cat([torch.full((2, min(lag, 5)), -1.0), x[:, : max(5 - lag, 0)]], -1)
    torch.testing.assert_close(torch.cat(seen, -1), expected)


def test_previous_never_shows_the_padding():
    x = torch.tensor([[1.0, torch.nan, torch.nan], [1.0, 2.0, 3.0]])
    for t in pyrohmm.markov("time", 3, dim=-1, lengths=torch.tensor([1, 3])):
        assert pyrohmm.previous("x", x, t).isfinite().all()
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, t])


def test_previous_at_an_axis_counted_from_the_right():
    x = torch.arange(6.0).reshape(2, 3)
    for t in pyrohmm.markov("time", 3, dim=-1, lengths=torch.tensor([3, 1])):
        given = pyrohmm.previous("x", x, t, axis=-1, initial=9.0)
        torch.testing.assert_close(given, pyrohmm.previous("x", x, t, axis=1, initial=9.0))
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, t])


def test_previous_with_a_wrong_axis_is_refused():
    for t in pyrohmm.markov("time", 3):
        with pytest.raises(
            ValueError, match=r"value: expected the full time axis of 3 steps at axis 1, got .*\(3, 2\)"
        ):
            pyrohmm.previous("x", torch.zeros(3, 2), t)
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3)[t])


def test_previous_errors():
    with pytest.raises(RuntimeError, match="in the body"):
        pyrohmm.previous("x", torch.zeros(3), slice(0, 1))
    for t in pyrohmm.markov("time", 3):
        with pytest.raises(ValueError, match="lag: expected at least 1, got 0"):
            pyrohmm.previous("x", torch.zeros(3), t, lag=0, axis=0)
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3)[t])


def test_sequences_outside_of_their_plate_are_refused():
    def model():
        with pyro.plate("sequences", 3, dim=-3):
            for t in pyrohmm.markov("time", 4, dim=-1):
                pyro.sample("z", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3, 4)[:, t])

    with pytest.raises(ValueError, match=r"expected size 1 at dimension -2, where there is no plate, got 3"):
        model()
