"""Hooks of the kernel at which programs see the frames of an interface: XDP and tc."""
