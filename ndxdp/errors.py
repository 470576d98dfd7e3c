"""The one exception that reaches the user."""


class NdxdpError(Exception):
    """Something foreseeable went wrong: one sentence, and a hint what to do about it.

    The command line prints both and exits with `exit_code`: 1, or 2 where the user's words
    (arguments, prefixes, files) are at fault. also: what else went wrong, where several things
    were found in one go; each a sentence of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", also: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.also = also


class UsageError(NdxdpError):
    """The words of a command, a file or a rule are wrong; nothing was touched."""

    exit_code = 2


class ModeUnavailable(NdxdpError):
    """A mode cannot be had on this interface or this host: another one may."""


class InterfaceGone(NdxdpError):
    """It was deleted or renamed: there is nothing to answer on."""


class NotAttached(NdxdpError):
    """There is nothing of ndxdp on the interface."""


class Damaged(NdxdpError):
    """Pins or files are missing, or hold what ndxdp did not write."""


def gone(interface: str) -> InterfaceGone:
    return InterfaceGone(f"{interface} has gone", "start again when it is back")
