"""Files and directories: atomic writes, locks, access and trust."""
