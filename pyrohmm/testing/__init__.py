"""For testing parts of your own: the brute-force oracle, random chains and error budgets.

The library itself never imports this. Hypothesis strategies are in `pyrohmm.testing.strategies`, which needs
hypothesis; nothing else here does.

>>> from pyrohmm.testing import enumeration, random_chain
>>> chain = random_chain(num_states=2, num_steps=3, seed=1)
>>> enumeration.viterbi(*chain.logits).states.shape
torch.Size([3])
"""

from pyrohmm.testing import enumeration
from pyrohmm.testing.chains import Chain, poison_padding, random_chain
from pyrohmm.testing.tolerance import assert_close_to_oracle, assert_within_budget

__all__ = [
    "Chain",
    "assert_close_to_oracle",
    "assert_within_budget",
    "enumeration",
    "poison_padding",
    "random_chain",
]
