# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one exception that stands for a mistake in the user's input, and how the command line shows it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from types import TracebackType

__all__ = ["InputError", "explanation_of", "input_error_behind", "lacks_memory", "message_of", "show_input_errors"]

logger = logging.getLogger(__name__)

_NO_MEMORY = "DefaultCPUAllocator: "  # how PyTorch begins where the CPU has no memory left
_PART = re.compile(
    r"(?:Failed to instantiate component|Failed to evaluate ConfigExpression:) *['\"]?([^'\"].*?)['\"]?(?: with|$)"
)
_RUN = (".run()", ".open()", ".close()", "check_cases']()")  # ends of expressions that work, and make no part
_NO_TARGET = "Cannot locate class or function path"
_LONGEST = 300  # characters of another library's message


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
    known = explanation_of(error)
    if known:
        return " ".join(known.split())
    while error.__cause__:  # Compose wraps every exception in one that names the transform alone
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def explanation_of(error: BaseException) -> str:
    """What a user needs to know of an exception, and can do about it; empty for what is no mistake and no shortage.

    That is the message of an `InputError`, or what is said here of memory, of files that the system does not give, and
    of a part of a configuration that cannot be made.
    """
    mistake = input_error_behind(error)
    if mistake:
        return str(mistake)
    chain = list(_chain(error))
    for link in chain:
        if lacks_memory(link):
            text = str(link)
            return (
                f"out of memory ({text.splitlines()[0] if text else 'MemoryError'}). Choose a smaller batch_size or "
                "spatial_size, or another device."
            )
        if isinstance(link, OSError) and link.errno:
            place = link.filename or "a file of the run"
            return f"{place}: {link.strerror}. Check the path, its permissions and the free space."
    if isinstance(chain[-1], ModuleNotFoundError) and str(chain[-1]).startswith(_NO_TARGET):
        return f"the configuration cannot be used: {chain[-1]} Correct the _target_, or install what it is in."
    failed = [match for link in chain if (match := _PART.match(" ".join(str(link).split())))]
    if failed and not any(match[1].endswith(_RUN) for match in failed):
        first = chain[-1]
        return (
            f"the configuration cannot be used: {failed[-1][1]}: {type(first).__name__}: "
            f"{' '.join(str(first).split())[:_LONGEST]}. Correct what it is made of; `python -m atlas_istn settings` "
            "lists what may be set."
        )
    return ""


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there is not enough memory, of the CPU or a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def show_input_errors() -> None:
    """Show the message alone of an uncaught exception that has an explanation; the exit status stays 1.

    The traceback is logged at the level ``DEBUG``.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        known = explanation_of(error)
        if known:
            logger.debug("traceback of what follows", exc_info=(kind, error, traceback))
            sys.stderr.write(f"\nerror: {known}\n")
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
