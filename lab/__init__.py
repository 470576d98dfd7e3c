"""A network on one machine where an IPv6 neighbour has to be answered for: see README.md."""
