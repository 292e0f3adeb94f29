"""detofa: one detection supernet, a detector for every latency budget."""

__version__ = "0.1.0"
