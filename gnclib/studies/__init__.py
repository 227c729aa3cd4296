"""What takes hours, as resumable commands, with the results that come with the package.

Here: Figure 3, the comparison with the field, other inverse problems, the ablations, patches of photographs.
Never: drawing.
May import: `restore`, `score`, `gmm`, `images`, `io`.
"""
