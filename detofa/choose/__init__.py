"""Choose subnets of a trained supernet: evaluate some paths, predict the rest, search, verify."""
