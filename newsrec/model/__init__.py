"""Batches to scores: plain PyTorch modules that know nothing of files."""
