"""GATING: the experiments of D-Gating."""
