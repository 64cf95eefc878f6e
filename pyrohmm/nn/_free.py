"""How many numbers of a part are free: what information criteria count."""

from torch import Tensor, nn


def num_trainable(part: nn.Module) -> int:
    """The trainable numbers of a part.

    >>> num_trainable(nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)


def num_free(part: nn.Module, logits: str = "logits", mask: Tensor | None = None) -> int:
    """The trainable numbers of a part with a table of logits, one less for each row, and none where it is masked.

    Softmax does not see a number added to a row. Where the table is frozen, or replaced by a prior, nothing is taken
    off.

    Args:
        part: whose table it is.
        logits: its name.
        mask: of the shape of the table, False where a logit is always -inf; None for nowhere.
    """
    table = part._parameters.get(logits)
    if table is None or not table.requires_grad:
        return num_trainable(part)
    rows = table[..., 0].numel()
    forbidden = 0 if mask is None else int((~mask).sum())
    return num_trainable(part) - rows - forbidden
