"""Detects and measures the hardware, and chooses threads and precision."""
