"""The command line, one file per command; only ``newsrec.__main__`` imports this package."""
