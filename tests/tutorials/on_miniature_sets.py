"""Run a script on small data sets in the place of the public ones: python -m tests.tutorials.on_miniature_sets SCRIPT.

The sets are written into the present folder."""

import os
import runpy
import sys
from pathlib import Path

from pyrohmm.data import polyphony, ud_english_ewt
from tests.data import miniature

if __name__ == "__main__":
    folder = Path.cwd()
    os.environ["PYROHMM_DATA"] = str(folder)
    polyphony._FILES = miniature.polyphony(folder)
    ud_english_ewt._FILES = miniature.ud_english_ewt(folder)
    runpy.run_path(sys.argv[1], run_name="__main__")
