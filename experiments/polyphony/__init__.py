"""How well hidden Markov models predict polyphonic music: see README.md."""
