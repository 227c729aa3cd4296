"""Studies that take hours, as resumable commands, with the results that come with the package.

Here: Figure 3, the comparison with the field, other inverse problems, coverage of the posterior, entropies, schedules
from few pairs, ablations, patches of photographs; each is a function from settings to rows of a table
(:mod:`gnclib.io.table`), and how its rows are summarised.
Never: drawing.
May import: `restore`, `score`, `deep`, `foe`, `gmm`, `spline`, `images`, `io`.
"""
