"""Readers of data sets, each in its own file format."""
