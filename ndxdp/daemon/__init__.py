"""The long-running process: one uplink for each interface, kept in step with the network."""
