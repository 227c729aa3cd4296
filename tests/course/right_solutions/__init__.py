"""Solutions that are right, for each exercise a list of functions.

There is a loop, an expression for all at once, and one that goes through another dtype than torch.float64 or through
NumPy; a test looks for it while the solutions run.
"""
