"""Solutions as students get them wrong, by exercise, each with a part of the message that it must be answered with."""
