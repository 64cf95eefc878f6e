"""Sequence data: ragged sequences as one padded tensor, and loaders of public data sets."""

from pyrohmm.data.bee_dance import BeeDance as BeeDance
from pyrohmm.data.bee_dance import load_bee_dance as load_bee_dance
from pyrohmm.data.polyphony import Polyphony as Polyphony
from pyrohmm.data.polyphony import load_polyphony as load_polyphony
from pyrohmm.data.sequences import Sequences as Sequences
from pyrohmm.data.ud_english_ewt import TaggedWords as TaggedWords
from pyrohmm.data.ud_english_ewt import load_ud_english_ewt as load_ud_english_ewt
