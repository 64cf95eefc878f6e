"""Whether switching state space models find the regimes of a track: see README.md."""
