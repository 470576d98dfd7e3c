"""The state of an interface: maps, pins and files, with their locks."""
