"""Conversations with the kernel over netlink: links, addresses, routes, neighbours."""
