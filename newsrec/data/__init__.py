"""Turns MIND's files into arrays, samples, and the batches that the model reads."""

PADDING_NEWS, UNKNOWN_NEWS, FIRST_NEWS = 0, 1, 2
"""First rows of the catalogue and of every batch: padding, the unknown news, the first real one."""
