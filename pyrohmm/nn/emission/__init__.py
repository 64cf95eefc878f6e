"""Laws of an observation in each state."""
