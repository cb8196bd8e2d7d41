"""What the processes and machines of a run agree on, share and lock."""
