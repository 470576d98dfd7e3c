"""A soak test: a daemon answers for an hour of changes around it, and every answer is judged."""
