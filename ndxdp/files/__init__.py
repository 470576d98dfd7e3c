"""Files and directories that are written whole, locked and trusted."""
