"""Copies the presets and the demo into a wheel; ``newsrec/shipped.py`` finds them there."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "data/demo")


class BuildWithShipped(build_py):
    """Builds the package with the folders at the top of the repository."""

    def run(self) -> None:
        """Build the modules, then copy the folders; an editable install uses them in place."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "newsrec", "shipped")
        shutil.rmtree(target, ignore_errors=True)  # an earlier build may have left other files
        for folder in SHIPPED:
            ignored = shutil.ignore_patterns(".newsrec")
            shutil.copytree(folder, target / folder, ignore=ignored)


setup(cmdclass={"build_py": BuildWithShipped})
