"""`python -m stockade`."""

from stockade.cli import entry

entry()
