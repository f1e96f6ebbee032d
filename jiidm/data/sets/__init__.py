"""Public data sets, brought into the training layout."""
