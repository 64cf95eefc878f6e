"""Sequence data: ragged sequences as one padded tensor, and loaders of public data sets."""

from pyrohmm.data.polyphony import Polyphony as Polyphony
from pyrohmm.data.polyphony import load_polyphony as load_polyphony
from pyrohmm.data.sequences import Sequences as Sequences
from pyrohmm.data.ud_english_ewt import TaggedWords as TaggedWords
from pyrohmm.data.ud_english_ewt import load_ud_english_ewt as load_ud_english_ewt
