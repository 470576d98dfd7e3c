"""Processes that are killed at each system call that changes state."""
