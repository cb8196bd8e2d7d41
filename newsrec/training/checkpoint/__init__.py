"""Saves, reads and checks checkpoints."""
