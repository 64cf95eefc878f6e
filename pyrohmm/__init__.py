"""pyrohmm: exact hidden Markov models for Pyro."""
