"""`ndxdp doctor`: looks at the host, judges, and changes nothing."""
