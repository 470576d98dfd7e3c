"""Checks of a lab: their register, and a line for each that holds or fails."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from lab.commands import LabError
from lab.testbed import Testbed

Check = Callable[[Testbed], str | None]

CHECKS: list[Check] = []
FIRST: list[Check] = []
"""The checks that all others require."""


def first(function: Check) -> Check:
    """Register a check that all others require."""
    FIRST.append(function)
    return function


def check(function: Check) -> Check:
    """Register a check, in order of definition; its docstring is the line to print."""
    CHECKS.append(function)
    return function


def holds(function: Check, lab: Testbed) -> bool:
    """Run a check, and print its line; return True if it holds."""
    began = time.monotonic()
    try:
        more = function(lab)
    except LabError as error:
        print(f"FAILED  {function.__doc__}\n{error}", flush=True)
        return False
    except Exception:  # after any error, the other checks are still of interest
        print(f"FAILED  {function.__doc__}\n{traceback.format_exc()}", flush=True)
        return False
    took = f"({time.monotonic() - began:.0f} s)"
    print(f"ok      {function.__doc__}{f': {more}' if more else ''} {took}", flush=True)
    return True
