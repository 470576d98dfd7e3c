"""Shared addresses: which of several hosts answers for an address. Pure."""
