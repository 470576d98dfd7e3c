"""Figures of ndxdp and its peers, each a ratio within one run: `make bench`."""
