"""Files, written safely and read with care.

Here: atomic writing, guards against damaged files, resumable runs and results.
Never: anything that knows what the numbers mean.
May import: nothing of gnclib.
"""
