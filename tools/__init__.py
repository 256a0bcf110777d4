"""Commands for before and after a run: python -m tools.NAME."""
