"""Rules: prefixes, what is answered for them, and sets of rules. Pure."""
