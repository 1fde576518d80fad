"""Training speed against peers: `python -m benchmarks --suite cpu`."""
