"""Everything that shows what ndxdp does: status, metrics, traces."""
