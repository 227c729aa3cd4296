"""Solutions that are right, for each exercise a list of functions.

There is a loop, an expression for all at once, and one that leaves torch or its default dtype on the way.
"""
