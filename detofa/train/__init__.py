"""Training a supernet: the run folder, checkpoints, the loop, evaluation of paths."""
