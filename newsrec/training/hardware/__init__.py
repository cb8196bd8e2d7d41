"""What the hardware is, what was measured on it, and the threads and the precision chosen."""
