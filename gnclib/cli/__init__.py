"""The command ``gnc``: parse, call, print.

Here: options, progress, messages.
Never: work that a notebook might want, too.
May import: everything, inside of the commands.
"""
