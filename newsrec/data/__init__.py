"""Files to batches: MIND as arrays, samples, and the batches that the model reads."""

PADDING_NEWS, UNKNOWN_NEWS, FIRST_NEWS = 0, 1, 2
"""Rows of the catalogue, and of every batch: padding, the unknown story, the first real story."""
