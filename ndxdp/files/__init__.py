"""Files and directories: atomic writes, locks, access."""
