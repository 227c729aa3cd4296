"""Joint score matching (section 3.2): how the energies are learned.

Here: the losses, the toy on the line where all of them are known, the training loop, its data and its recipes.
Never: restoration of images beyond the one-step estimate that watches a training.
May import: `foe`, `gmm`, `spline`, `images`, `io`.
"""
