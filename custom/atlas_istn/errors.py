# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one exception that stands for a mistake in the user's input, and how the command line shows it."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["InputError", "input_error_behind", "message_of", "show_input_errors"]


class InputError(ValueError):
    """A file, a folder or a setting that cannot be used.

    The message names the file or setting, says what was expected and what was found, and what to do about it.
    The command line shows the message alone, without a traceback, and exits with status 1.
    """


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The ``InputError`` that caused an exception, however many others were raised from it; None if there is none."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def message_of(error: BaseException) -> str:
    """The message of the `InputError` behind an exception, or else of the first exception, in one line."""
    mistake = input_error_behind(error)
    if mistake:
        return " ".join(str(mistake).split())
    while error.__cause__:  # Compose wraps every exception in one that names the transform alone
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def show_input_errors() -> None:
    """Show the message alone of an uncaught exception that an ``InputError`` caused; the exit status stays 1."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = input_error_behind(error)
        if mistake is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            sys.stderr.write(f"\nerror: {mistake}\n")

    sys.excepthook = hook
