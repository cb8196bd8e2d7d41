"""Readers for data sets, one for each file format."""
