"""The configuration file: its model, its reader, and where each key stands."""
