"""The executable paper as files: notebooks, figures, the ledger of claims.

Here: running notebooks, the manifest of figures, plots, claims and their verdicts.
Never: mathematics of the paper.
May import: `io`.
"""
