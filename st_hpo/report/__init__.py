"""What a search found, shown: a page for people, plots, and a short form for terminals and notebooks.

Nothing here changes a result, and nothing needs the backend that ran it.
"""
