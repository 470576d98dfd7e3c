"""The configuration file: its model, its reader, and the lines of its keys."""
