"""ndxdp: an IPv6 Neighbor Discovery responder that answers in the kernel."""

__version__ = "0.1.0"
