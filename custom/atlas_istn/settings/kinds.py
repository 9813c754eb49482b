# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a setting may be: how its text is read, and what is refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import yaml

__all__ = ["KINDS", "NotAllowedError", "Setting"]

KINDS = (
    "truth",
    "whole",
    "number",
    "text",
    "texts",
    "wholes",
    "numbers",
    "values",
    "windows",
    "table",
    "names",
    "component",
    "components",
    "device",
    "anything",
)


class NotAllowedError(ValueError):
    """A value that a setting cannot have; the message says what was expected."""


@dataclass(frozen=True)
class Setting:
    """One id.

    Attributes:
        help: what it is, in a line.
        kind: one of `KINDS`; ``anything`` is a part of the configuration and not looked into.
        low: least number; with `above` it must be exceeded.
        high: greatest number.
        above: numbers must be greater than `low`.
        unit: of numbers.
        choices: the texts that are allowed; empty for any.
        optional: null is allowed.
        fields: of a table.
        length: of a list; 0 for any but none.
        rising: each number of a list must be greater than the one before.
    """

    help: str
    kind: str = "anything"
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    unit: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    fields: Mapping[str, Setting] = field(default_factory=dict)
    length: int = 0
    rising: bool = False

    def read(self, value: Any) -> Any:
        """Return a value in its type, also one that comes as text from a command line or a client.

        Raises:
            NotAllowedError: it is none that this setting may have.
        """
        if self.kind == "anything" or _is_expression(value):
            return value
        if isinstance(value, str) and self.kind != "text":
            value = _from_text(value)
        if value is None or (isinstance(value, str) and self.optional and value.lower() in ("null", "none")):
            if self.optional:
                return None
            raise NotAllowedError(self.expected)
        found: Any = getattr(self, f"_read_{self.kind}")(value)
        return found

    @property
    def expected(self) -> str:
        """What is allowed, in words."""
        words = {
            "truth": "true or false",
            "whole": "a whole number",
            "number": "a number",
            "text": "a text",
            "wholes": "whole numbers",
            "numbers": "numbers",
            "texts": "a list of texts",
            "values": "whole numbers, or lists of them, that differ",
            "windows": "2 rising numbers, or a list that has that or null for each channel",
            "table": f"a table with {', '.join(self.fields)}",
            "names": "a table from class index to name",
            "component": "a component (a table with _target_) or an expression",
            "components": "a list of components (tables with _target_)",
            "device": "a device that this machine has",
        }[self.kind]
        if self.choices:
            words = " or ".join(self.choices)
        if self.rising:
            words = f"rising {words}"
        if self.length:
            words = f"{self.length} {words}"
        if self.low > -math.inf:
            words += f" {'above' if self.above else 'from'} {self.low:g}"
        if self.high < math.inf:
            words += f" up to {self.high:g}"
        return words + (f" [{self.unit}]" if self.unit else "") + (", or null" if self.optional else "")

    def _read_truth(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise NotAllowedError(self.expected)
        return value

    def _read_number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise NotAllowedError(self.expected)
        if value < self.low or value > self.high or (self.above and value == self.low):
            raise NotAllowedError(self.expected)
        return value

    def _read_whole(self, value: Any) -> int:
        number = self._read_number(value)
        if number != int(number):
            raise NotAllowedError(self.expected)
        return int(number)

    def _read_text(self, value: Any) -> str:
        text = value if isinstance(value, str) else str(value)
        if self.choices and text not in self.choices:
            raise NotAllowedError(self.expected)
        return text

    def _read_texts(self, value: Any) -> list[str]:
        if not isinstance(value, list | tuple):
            raise NotAllowedError(self.expected)
        return [self._read_text(item) for item in value]

    def _read_numbers(self, value: Any) -> list[float]:
        if not isinstance(value, list | tuple) or not value or (self.length and len(value) != self.length):
            raise NotAllowedError(self.expected)
        numbers = [self._read_number(item) for item in value]
        if self.rising and any(second <= first for first, second in pairwise(numbers)):
            raise NotAllowedError(self.expected)
        return numbers

    def _read_wholes(self, value: Any) -> list[int]:
        return [self._read_whole(item) for item in self._read_numbers(value)]

    def _read_values(self, value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or not value or not all(value_ != [] for value_ in value):
            raise NotAllowedError(self.expected)
        found = [
            self._read_wholes(item) if isinstance(item, list | tuple) else self._read_whole(item) for item in value
        ]
        flat = [number for item in found for number in (item if isinstance(item, list) else [item])]
        if len(set(flat)) < len(flat):
            raise NotAllowedError(self.expected)
        return found

    def _read_windows(self, value: Any) -> list[Any]:
        window = Setting(self.help, "numbers", length=2, rising=True)
        if isinstance(value, list | tuple) and value and all(isinstance(item, list | tuple | None) for item in value):
            return [None if item is None else window.read(item) for item in value]
        return window.read(value)

    def _read_names(self, value: Any) -> dict[int, str]:
        try:
            names = {int(index): str(name) for index, name in value.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise NotAllowedError(self.expected) from error
        if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names) or len(names) < 2:
            raise NotAllowedError("a table from class index, 0 (the background), 1 and so on, to names that differ")
        return names

    def _read_table(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise NotAllowedError(self.expected)
        return dict(value)

    def _read_component(self, value: Any) -> Any:
        if not _is_expression(value):
            raise NotAllowedError(self.expected)
        return value

    def _read_components(self, value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or not all(_is_expression(item) for item in value):
            raise NotAllowedError(self.expected)
        return list(value)

    def _read_device(self, value: Any) -> Any:
        try:
            torch.empty(0, device=value)
        except Exception as error:  # each kind of device has its own
            count = torch.cuda.device_count()
            known = ["cpu", *(f"cuda:{number}" for number in range(count))]
            raise NotAllowedError(f"{self.expected}: {', '.join(known)}") from error
        return value


def _is_expression(value: Any) -> bool:
    """Whether MONAI makes the value: an expression, a reference, or a component."""
    if isinstance(value, Mapping):
        return "_target_" in value
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def _from_text(text: str) -> Any:
    with contextlib.suppress(ValueError):  # 1e-3 is no number in YAML 1.1
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text
