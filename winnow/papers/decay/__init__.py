"""DECAY: the experiments of p-norm weight decay."""
