"""Sockets: what is said to and heard from the network and the kernel's netlink."""
