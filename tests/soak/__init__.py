"""A daemon that answers for an hour while everything around it changes, and every answer judged."""
