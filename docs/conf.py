"""Configuration of the documentation; ``python -m sphinx -W -b html docs build/site`` builds it."""

from sphinx.application import Sphinx

from newsrec import __version__

project = "newsrec"
author = "the newsrec authors"
copyright = "2026, the newsrec authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "newsrec"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True

ELSEWHERE = {
    "../data/README.md": "data-folder.md",
    "../configs/README.md": "presets.md",
    "../CONTRIBUTING.md": "first-change.md",
}
"""Pages that live beside what they describe: their place in the repository, and in the site."""


def setup(app: Sphinx) -> None:
    """Have links to pages outside of ``docs/`` lead to their copies in the site."""

    def redirect(app: Sphinx, name: str, source: list[str]) -> None:
        for path, page in ELSEWHERE.items():
            source[0] = source[0].replace(f"]({path})", f"]({page})")

    app.connect("source-read", redirect)
