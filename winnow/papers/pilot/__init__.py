"""PILOT: the experiments of Mask in the Mirror and its successors."""
