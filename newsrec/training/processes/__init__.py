"""How the processes and machines of a run agree, share files and data, and lock the run folder."""
