"""The supernet: elastic layers, the detector built from them, its losses and its weights."""
