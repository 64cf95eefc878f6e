"""Networks that read whole sequences: what guides are made of."""
