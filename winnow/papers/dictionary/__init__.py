"""DICTIONARY: the experiments that hold the four lines of work against one another."""
