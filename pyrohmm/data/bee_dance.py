"""Tracks of dancing honey bees with the steps at which their dance changes: Oh, Rehg, Balch and Dellaert (2008)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.data.cache import fetch
from pyrohmm.data.sequences import Sequences

_URL = "https://raw.githubusercontent.com/OctoberChang/klcpd_code/master/data/beedance/"

# file -> its SHA-256
_FILES = {
    "beedance-1.mat": "414516455ab13fda990b7b016dd1472158e3aec833ffb2136f169101073c6821",
    "beedance-2.mat": "babbdb326f1ca0cafb534a8320d107e8fa21762226bad807b3b60904c288db2b",
    "beedance-3.mat": "e0261461cc8a8f6057a3ffdac67d3e9d370388ace279ddc5ffc7b1fd13ab6169",
    "beedance-4.mat": "c08da4b875691eb716a0431aec9f675dd73ca77329808e47bc5707349ce93b63",
    "beedance-5.mat": "29e2027b20ad0f0f175c10b30b90ffdb7b08d7bcadaaf3759bb8712cb68f2a63",
    "beedance-6.mat": "d51597ba203a15ba8c3bcf94364950f3a1693b29272b47cf2c32dd69eb24cfd4",
}


class BeeDance(NamedTuple):
    """Tracks of dancing bees, and where the dance changes.

    Attributes:
        tracks: x (N, T, 3): x and y of the bee, and how its heading changes there.
        change_points: N int64 tensors (C_n,), the first step of each phase of the dance but the first one; increasing.
    """

    tracks: Sequences
    change_points: tuple[Tensor, ...]


def load_bee_dance(*, dtype: torch.dtype | None = None) -> BeeDance:
    """Six tracks of honey bees that dance: in turn they waggle, turn right and turn left.

    People who watched the films marked where one phase ends and the next begins. The files have these change points,
    but not which phase is which.

    =====  =====  =============
    track  steps  change points
    =====  =====  =============
    0      1057   19
    1      1124   22
    2      602    16
    3      756    17
    4      813    28
    5      608    15
    =====  =====  =============

    Each column of each track was scaled to [0, 1] in the files, so lengths along x and y differ, no unit is left, and
    the third column has its 0 (straight on) somewhere near 0.5. It is the change of the heading, not the heading: it
    stays around one value while the bee turns, and goes to and fro from step to step while the bee waggles.

    The files come from PYROHMM_DATA (``beedance/beedance-1.mat`` and so on in the folder that this environment
    variable names), the cache or a download: see :func:`pyrohmm.data.cache.fetch`.

    Args:
        dtype: of x. Default: torch's default dtype.

    Returns:
        `BeeDance`.

    Raises:
        ValueError: a file has a wrong checksum.
        ConnectionError: a file is not there and cannot be downloaded.

    Reference:
        S. M. Oh, J. M. Rehg, T. Balch, F. Dellaert, "Learning and inferring motion patterns using parametric segmental
        switching linear dynamic systems", International Journal of Computer Vision 77, 2008. Files of the repository
        OctoberChang/klcpd_code (W.-C. Chang, C.-L. Li, Y. Yang, B. Poczos, "Kernel change-point detection with
        auxiliary deep generative models", ICLR 2019).

    Example:
        >>> dance = load_bee_dance()  # doctest: +SKIP
        >>> dance.tracks  # doctest: +SKIP
        Sequences(6 sequences of 602 to 1124 steps, event_shape=(3,), float32)
        >>> dance.change_points[5][:4]  # doctest: +SKIP
        tensor([16, 57, 94, 137])
    """
    import scipy.io  # slow to import, and only needed here

    dtype = torch.get_default_dtype() if dtype is None else dtype
    files = [scipy.io.loadmat(fetch(file, _URL + file, sha256, "beedance")) for file, sha256 in _FILES.items()]
    return BeeDance(
        Sequences.from_list([file["Y"] for file in files], dtype=dtype),
        tuple(torch.from_numpy(np.flatnonzero(file["L"])) for file in files),
    )
