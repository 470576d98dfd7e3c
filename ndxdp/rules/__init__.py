"""Rules: prefixes, answers, and sets of them. Pure."""
