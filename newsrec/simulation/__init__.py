"""Simulated worlds with a known answer."""
