"""Checks of `ndxdp doctor`, which examines the host and changes nothing."""
