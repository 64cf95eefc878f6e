"""Which implementation and which form `auto` picks, and why."""

from typing import NamedTuple

from torch import Tensor

from pyrohmm.ops.chain import Impl, decide, fit_chain


class Explanation(NamedTuple):
    """How sums over paths are computed for a chain.

    Attributes:
        impl: "reference", "cpu" or "gpu".
        form: "scaled" (probabilities, one matrix product a step) or "log" (log-probabilities, safe for any chain).
        why: the reasons, in words.
    """

    impl: str
    form: str
    why: str

    def __str__(self) -> str:
        return f"{self.impl}, {self.form} space: {self.why}"


def explain(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> Explanation:
    """Say which implementation and form `log_partition`, `filter`, `smooth`, `entropy` and `sample` use for a chain.

    `viterbi` and `k_best` use the same implementation, in one form only; for `k_best` there is none on a GPU, where it
    is the reference's. There, `viterbi` and `sample` cut long sequences into spans by the same rule, up to 64 states,
    `sample` with the number of paths for that of sequences. See `pyrohmm.ops.certificate.smallest_log_ratio` for the
    bound that decides on the form.

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        impl: which implementation.

    Returns:
        an `Explanation`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `pyrohmm.ops.log_partition`.

    Example:
        >>> import torch
        >>> print(explain(torch.zeros(2), torch.eye(2).log(), torch.zeros(5, 2), impl="reference"))
        reference, log space: asked for
    """
    chain = fit_chain(initial_logits, transition_logits, observation_logits, lengths)
    implementation, why = decide(impl, chain.observation)
    match implementation:
        case "cpu":
            from pyrohmm.ops.forward_backward.cpu import explain

            form, because = explain(chain)
            return Explanation("cpu", form, f"{why}; {because}")
        case "gpu":
            from pyrohmm.ops.forward_backward.gpu import explain

            form, because = explain(chain)
            return Explanation("gpu", form, f"{why}; {because}")
        case "reference":
            return Explanation("reference", "log", why)
