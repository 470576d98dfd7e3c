"""Commands of ndxdp: arguments, output and exit codes, one file for each group."""
