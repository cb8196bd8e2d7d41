"""Tests that try to break newsrec: damaged and forged files, kills at any moment, many threads.

``pytest -m slow tests/hard`` runs each in small, a minute or two in all. The environment variable
HARD multiplies what they try: ``HARD=20 pytest -m slow tests/hard`` makes 20 times as many
mutations, kills and calls. Seeds are fixed, and a longer run begins with the shorter one's, so what
it finds can be found again: a failure names its seed.
"""

import os

TIMES = int(os.environ.get("HARD", "1"))
"""How many times as much as in small is tried."""
