"""Sphinx's settings; `build.py` assembles the sources."""

import kdbench

project = "kdbench"
author = "kdbench contributors"
copyright = author  # Sphinx's name for it
release = version = kdbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
default_role = "py:obj"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True  # attributes of data classes stand in the class's docstring alone

html_theme = "furo"
html_title = f"kdbench {release}"
html_copy_source = False
html_show_sphinx = False
