"""Files to batches: MIND as arrays, samples, and the batches that the model reads."""
