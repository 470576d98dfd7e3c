"""Sharing a prefix: hosts learned on both sides, router advertisements relayed. Pure."""
