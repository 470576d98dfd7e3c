"""Neighbor Discovery on the wire. Pure."""
