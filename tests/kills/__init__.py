"""A process that is killed at each system call that changes state."""
