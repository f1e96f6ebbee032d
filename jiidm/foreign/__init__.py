"""Weights of other makes, read without running anything that they hold, and made into checkpoints of jiidm.

`archive` opens the files, `unpickle` and `builders` read the pickles inside, `naming` and `architecture` find the
network, its configuration and its tensors, `convert` chains them.
"""
