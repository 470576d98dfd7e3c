"""Facts that running daemons publish for other processes."""
