"""`python -m tests [pytest's arguments]`: pytest in namespaces that vanish with it."""

import sys

from lab import private

if __name__ == "__main__":
    sys.exit(private.run([sys.executable, "-m", "pytest", *sys.argv[1:]]))
