"""The parts of `scripts/benchmark_peer.py`."""
