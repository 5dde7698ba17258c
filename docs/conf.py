"""Sphinx: `sphinx-build -W docs out/docs` makes the pages; they are read on the forge as they are, too."""

from rtdsae import __version__

project = "rtdsae"
author = "The rtdsae developers"
copyright = "The rtdsae developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = []
html_theme = "furo"
html_title = f"rtdsae {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to #headings, as on the forge

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
