"""What ``fit --dry_run`` says of the memory, the disk and the time that a run needs."""
