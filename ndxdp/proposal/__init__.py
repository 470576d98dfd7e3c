"""The configuration that `ndxdp init` proposes: a survey of the host, and what follows from it."""
