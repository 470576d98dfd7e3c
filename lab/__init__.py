"""A network on one machine where a host must answer for an IPv6 neighbour: see README.md."""
