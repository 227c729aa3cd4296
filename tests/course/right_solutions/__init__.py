"""Solutions that are unusual but right: for each exercise a list of functions."""
