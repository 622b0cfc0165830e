"""The command line ``st-hpo``: what a search has found, from its saved result or its study."""

from __future__ import annotations

from st_hpo.cli.app import main

__all__ = ["main"]
