"""``python -m st_hpo``: the command line."""

from __future__ import annotations

from st_hpo.cli import main

if __name__ == "__main__":
    main()
