"""What the awkward chains are too small for: many states, blocks of several sequences, and ties among many."""

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops import spans
from pyrohmm.ops.chain import fit_chain
from pyrohmm.ops.viterbi import gpu
from pyrohmm.testing import Chain, random_chain
from tests.ops.cases import AWKWARD


def integers(*args, **kwargs) -> Chain:
    """A chain with so many ties that few paths have no rival, none of them broken by rounding."""
    chain = random_chain(*args, **kwargs, lengths="ragged")
    return Chain(*(logits.round() for logits in chain.logits), chain.lengths)


MANY = {
    "shared": random_chain(70, 4, (5,), lengths="ragged", poison=True),
    "constant": random_chain(65, 3, (2, 2), transitions="constant", broadcast=True, lengths="ragged", poison=True),
    "each": random_chain(130, 3, (2,), transitions="each", lengths="ragged", poison=True),
    "each for all": random_chain(70, 3, (3, 2), transitions="each", broadcast=True, lengths="ragged", poison=True),
    "impossible": random_chain(150, 4, (2,), impossible=0.6, lengths="ragged", poison=True),
    "impossible each": random_chain(70, 4, (3,), transitions="each", impossible=0.95, lengths="ragged", poison=True),
    "scattered": random_chain(70, 4, (2, 2), contiguous=False, lengths="ragged", poison=True),
    "ties": integers(130, 4, (2,)),
    "ties each": integers(70, 4, (2,), transitions="each"),
}
# For these a program holds all in registers.
FEW = {
    f"{name} {num_states}": random_chain(
        num_states, 5, (6,), transitions=name, impossible=0.1, lengths="ragged", poison=True
    )
    for num_states in (2, 5, 17, 33, 64)
    for name in ("shared", "each")
} | {"ties 17": integers(17, 8, (5,)), "ties 64": integers(64, 8, (5,), transitions="each")}

AWKWARDEST = ["no_steps", "one_state_each", "one_step_each", "ragged_each", "broadcast_each", "impossible_sequences"]


def assert_is_the_references(chain: Chain) -> None:
    """The very same path, and the same potential but for the order in which it is added up."""
    ours, expected = (ops.viterbi(*chain.logits, lengths=chain.lengths, impl=impl) for impl in ("gpu", "reference"))
    assert torch.equal(ours.states, expected.states)
    assert ours.log_prob.dtype == expected.log_prob.dtype
    tolerance = 1e-10 if expected.log_prob.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.log_prob, expected.log_prob, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chain", [*MANY.values(), *FEW.values()], ids=[*MANY, *FEW])
def test_the_path_is_the_references(chain):
    assert_is_the_references(chain)


@pytest.mark.parametrize("name", ["shared", "each", "ties", "shared 17", "each 64", "ties 64"])
def test_the_path_is_the_references_in_float32(name, monkeypatch):
    monkeypatch.setattr(gpu, "WARPS", 1)
    assert_is_the_references((MANY | FEW)[name].to(torch.float32))


@pytest.mark.parametrize("name", [*MANY, "shared 17", "ties 17", *AWKWARDEST])
def test_blocks_of_several_sequences(name, monkeypatch):
    monkeypatch.setattr(gpu, "WARPS", 1)
    assert_is_the_references((MANY | FEW | AWKWARD)[name])


@pytest.mark.parametrize("name", ["constant", "each", "impossible each", "ties"])
def test_more_states_than_a_program_goes_to(name, monkeypatch):
    monkeypatch.setattr(gpu, "WARPS", 1)
    monkeypatch.setattr(gpu, "TO", 64)
    assert_is_the_references(MANY[name])


@pytest.mark.parametrize("name", AWKWARDEST)
def test_the_form_for_many_states_takes_few(name, monkeypatch):
    monkeypatch.setattr(gpu, "WALK", 0)
    monkeypatch.setattr(gpu, "TO", 64)
    assert_is_the_references(AWKWARD[name])


def test_of_three_hundred_states_on_its_own_accord():
    assert gpu.TO == 256
    assert_is_the_references(random_chain(300, 3, (2,), lengths=torch.tensor([3, 2]), poison=True))


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("num_states", [5, 70])
def test_nan_leads_to_no_state_that_is_not_there(num_states, pytestconfig):
    chain = random_chain(num_states, 4, (2,))
    chain.observation_logits[:, 2] = torch.nan
    states, _ = gpu.viterbi(fit_chain(*(logits.to(pytestconfig.getoption("--device")) for logits in chain.logits)))
    assert (states >= -1).all() and (states < num_states).all()


@pytest.fixture
def cut(monkeypatch) -> None:
    """Spans of two steps; of spans too, if there are four or more. Few programs, that the interpreter be quick."""
    monkeypatch.setattr(gpu, "WARPS", 1)
    monkeypatch.setattr(spans, "steps_of_span", lambda num_steps, *_: 2 if num_steps >= 4 else None)


def test_k_best_has_no_kernel():
    with pytest.raises(NotImplementedError, match="impl: 'gpu' .* k_best .* use 'auto' or 'reference'"):
        ops.k_best(*random_chain().logits, k=2, impl="gpu")


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", AWKWARD)
def test_spans_of_awkward_chains(name):
    assert_is_the_references(AWKWARD[name])


SPANS = {
    f"{transitions} {num_states} {num_steps}": random_chain(
        num_states, num_steps, batch, transitions=transitions, impossible=0.2, lengths="ragged", poison=True, seed=5
    )
    for num_states, num_steps, batch in ((1, 9, (3,)), (2, 12, (5,)), (3, 8, (2, 2)), (5, 6, (3,)), (17, 4, (2,)))
    for transitions in ("shared", "constant", "each")
}


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in SPANS] + [(f"{name} 3 8", torch.float32) for name in ("shared", "each")],
)
def test_the_path_over_spans_is_the_references(name, dtype):
    assert_is_the_references(SPANS[name].to(dtype))


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("transitions", ["shared", "each"])
def test_no_sequences_in_spans(transitions):
    assert_is_the_references(random_chain(2, 5, (0,), transitions=transitions))


@pytest.mark.usefixtures("cut")
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_nan_in_spans_leads_to_no_state_that_is_not_there(pytestconfig):
    chain = random_chain(5, 9, (2,))
    chain.observation_logits[:, 2] = torch.nan
    states, _ = gpu.viterbi(fit_chain(*(logits.to(pytestconfig.getoption("--device")) for logits in chain.logits)))
    assert (states == -1).all()


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(("transitions", "sequences"), [("shared", 32), ("each", 6)])
@pytest.mark.parametrize(("num_states", "num_steps"), [(2, 11), (3, 8), (4, 5)])
def test_ties_across_spans_go_to_the_references_path(num_states, num_steps, transitions, sequences):
    # Few values: most sequences have several best paths, and some have none.
    batch = (sequences,)
    chain = random_chain(num_states, num_steps, batch, transitions=transitions, impossible=0.15, lengths="ragged")
    logits = [torch.where(x.isinf(), x, x.round().clamp(-1, 1)) for x in chain.logits]
    assert_is_the_references(Chain(*logits, chain.lengths))


@pytest.mark.slow
@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_sequence_is_cut_of_its_own_accord(transitions, dtype):
    chain = random_chain(2, 2111, transitions=transitions, scale=3.0, lengths=torch.tensor(2100), poison=True)
    assert_is_the_references(chain.to(dtype))


def test_shapes_that_come_again(request):
    # On a GPU the third time, and those after it, replay what the second one recorded.
    num_steps = 3 if request.config.getoption("--device") == "cpu" else 40
    for seed in range(4):
        assert_is_the_references(random_chain(300, num_steps, (3,), lengths="ragged", poison=True, seed=seed))
