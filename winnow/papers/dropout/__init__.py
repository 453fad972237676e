"""DROPOUT: the experiments of adaptive dropout."""
