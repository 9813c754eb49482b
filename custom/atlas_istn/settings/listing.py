# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that lists the settings of the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .table import SETTINGS, Setting

__all__ = ["list_settings"]


def list_settings(search: str = "") -> str:
    """List what may be set in a configuration or on the command line of ``monai.bundle run``: id, values, meaning.

    Args:
        search: list only the ids that contain this.
    """
    rows = [row for row in _rows(SETTINGS) if search in row[0]]
    width = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {meaning}: {values}" for name, values, meaning in rows)


def _rows(settings: Mapping[str, Setting], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, setting in settings.items():
        if setting.kind == "anything":
            continue
        if not setting.fields:
            yield prefix + name, setting.expected, setting.help
        yield from _rows(setting.fields, f"{prefix}{name}#")
