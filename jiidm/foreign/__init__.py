"""Reads weights of other programs without running anything that they hold, and converts them into checkpoints.

`archive` opens the files, `unpickle` and `builders` read the pickles inside, `naming` and `architecture` find the
network, its configuration and its tensors, and `convert` writes the checkpoint.
"""
