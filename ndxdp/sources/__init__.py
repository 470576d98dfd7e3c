"""Where addresses come from that nobody writes down: streams of them, each with a name."""
