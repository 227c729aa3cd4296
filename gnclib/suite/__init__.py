"""The executable paper as files: notebooks, figures, the ledger of claims.

Here: running notebooks, what each figure is and who makes it, plots, the claims with their rules and verdicts.
Never: mathematics of the paper.
May import: `io`.
"""
