"""How well a sticky autoregressive hidden Markov model finds the phases of a bee's dance: see README.md."""
