"""Sequence data: ragged sequences as one padded tensor, and loaders of public data sets."""

from pyrohmm.data.polyphony import Polyphony as Polyphony
from pyrohmm.data.polyphony import load_polyphony as load_polyphony
from pyrohmm.data.sequences import Sequences as Sequences
