"""Max-product inference: viterbi and k_best."""

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from pyrohmm.ops.chain import Chain, Impl, check_entries, choose, clear_padding, fit_chain


class ViterbiResult(NamedTuple):
    """Result of `viterbi`: the best path (..., T) int64, -1 past the length, and its total potential (...)."""

    states: Tensor
    log_prob: Tensor


class KBestResult(NamedTuple):
    """Result of `k_best`: the best paths (..., k, T) int64 and their total potentials (..., k), best first."""

    states: Tensor
    log_prob: Tensor


def viterbi(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> ViterbiResult:
    r"""The most probable path (Viterbi decoding).

    .. math:: \max_{z_{1:T}} \; \pi_{z_1} + \sum_{t<T} A_{t, z_t z_{t+1}} + \sum_t o_{t, z_t}

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        impl: which implementation.

    Returns:
        `ViterbiResult`: states (..., T) int64 and log_prob (...), the path's total potential (not divided by Z).
        States are -1 past the length, and everywhere when no path is possible (log_prob is then -inf).
        Ties go to the lowest state, from the last step backwards.

    Raises:
        TypeError, ValueError, NotImplementedError: as `pyrohmm.ops.log_partition`.

    Reference:
        Rabiner (1989), section III.B.

    Example:
        >>> import torch
        >>> viterbi(torch.zeros(2), torch.tensor([[0.0, -2.0], [-2.0, 0.0]]), torch.tensor([[0.0, 1], [1, 0], [0, 3]]))
        ViterbiResult(states=tensor([1, 1, 1]), log_prob=tensor(4.))
    """
    chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
    return ViterbiResult(*kernel.viterbi(chain))


def k_best(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> KBestResult:
    r"""The k most probable paths, best first (list Viterbi).

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        k: how many paths.
        lengths: (...), int64; all T when None.
        impl: which implementation.

    Returns:
        `KBestResult`: states (..., k, T) int64 and log_prob (..., k), total potentials in falling order. Where a
        sequence has fewer than k possible paths the rest is -1 and -inf.

    Raises:
        ValueError: k is no positive integer; otherwise as `pyrohmm.ops.log_partition`.

    Reference:
        Seshadri and Sundberg (1994), "List Viterbi decoding algorithms with applications".

    Example:
        >>> import torch
        >>> k_best(torch.tensor([0.0, -1.0]), torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, -3.0]]), 3)
        KBestResult(states=tensor([[0, 0],
                [1, 0],
                [0, 1]]), log_prob=tensor([ 0., -1., -3.]))
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k: expected a positive integer, got {k!r}")
    arguments = (initial_logits, transition_logits, observation_logits, lengths)
    chain, kernel = _begin(impl, *arguments, no_kernel="k_best has no kernel for it")
    return KBestResult(*kernel.k_best(chain, k))


def _begin(impl: str, *arguments: Tensor | None, no_kernel: str = "") -> tuple[Chain, ModuleType]:
    """The chain as the chosen implementation wants it, and that implementation."""
    chain = fit_chain(*arguments)  # pyright: ignore[reportArgumentType]
    chosen = choose(impl, chain.observation, no_kernel)
    check_entries(chain)
    match chosen:
        case "cpu":
            from pyrohmm.ops.viterbi import cpu as kernel
        case "gpu":
            from pyrohmm.ops.viterbi import gpu as kernel
        case "reference":
            from pyrohmm.ops.viterbi import reference as kernel

            chain = clear_padding(chain)
    return chain, kernel
