"""Settings of the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from st_hpo import __version__

project = "st_hpo"
author = "The st_hpo maintainers"
copyright = "2026, The st_hpo maintainers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
# The fields of dataclasses are described in their docstrings' `Attributes:`; as ivars they are not listed twice
napoleon_use_ivar = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"st_hpo {version}"
html_show_sphinx = False
