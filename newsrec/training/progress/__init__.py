"""What a person sees of a run: the bar, the speed, the curves, and how it ended."""
