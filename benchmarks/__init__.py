"""Figures against peers, each a ratio within one run: `make bench`."""
