"""Readers for datasets, one for each file format."""
