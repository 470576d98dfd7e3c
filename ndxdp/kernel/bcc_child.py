"""A script for the system's Python: compile one program with bcc, write the instructions to stdout.

Arguments: the entry point, the source directory, and compiler flags. ndxdp does not import it.
"""

import os
import sys


def main() -> int:
    """Compile the program; return the exit code, 3 if bcc is not installed."""
    program, directory, *flags = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # messages of bcc must not mix with the instructions
    try:
        from bcc import BPF  # type: ignore[import-not-found]
    except ImportError as error:
        print(error, file=sys.stderr)
        return 3
    with open(os.path.join(directory, "ndp_responder.c")) as source:
        module = BPF(text=source.read(), cflags=["-DNDXDP_BCC", f"-I{directory}", *flags])
    with os.fdopen(out, "wb") as stream:
        stream.write(module.dump_func(program.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
