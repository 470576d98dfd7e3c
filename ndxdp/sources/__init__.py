"""Sources of addresses: streams of endpoints that appear and disappear."""
