"""What a run shows: the progress bar, the speed, the curves, and how it ended."""
