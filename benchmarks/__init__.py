"""Speed against other libraries and the machine's ceilings: `make bench`, or `python -m benchmarks cpu`."""
