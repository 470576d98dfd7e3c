"""Packet sockets, their filters, and multicast membership."""
