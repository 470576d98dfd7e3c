"""Random frames, compared: the kernel's programs against ndp.py, the specification."""
