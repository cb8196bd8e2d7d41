"""Estimates for ``fit --dry_run``: the memory, disk space and time that a run needs."""
