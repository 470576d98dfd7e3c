"""The command `python -m ndxdp`."""

from ndxdp.cli.main import main

main()
