"""Drawn landscapes with exact label maps, for those without a data set."""
