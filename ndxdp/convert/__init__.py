"""Configurations of other responders, read and written as ours."""
