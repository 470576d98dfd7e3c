"""The command `ndxdp`, also as `python -m ndxdp`."""

import signal


def main() -> None:
    """Import the commands, and run one."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # There is nothing to undo yet, so Ctrl-C ends the process without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ndxdp.cli.main import main as run

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
