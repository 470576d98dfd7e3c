"""Configurations of other responders, converted into one for ndxdp."""
