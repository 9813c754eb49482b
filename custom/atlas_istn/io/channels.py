# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Images whose channels lie in several files: ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz``, …, or as a list tells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .names import IMAGE_SUFFIXES

__all__ = ["ImagePath", "channel_files", "files_of", "in_folder", "join_channels", "namesake", "without_channel"]

_CHANNEL = re.compile(r"_\d{4}$")  # at the end of a stem


class ImagePath(str):
    """The path of an image. Where its channels lie in several files, it is that of the first, and `files` are all.

    So whatever needs a name, a format or a geometry takes it for an ordinary path.

    Args:
        files: one or more.
    """

    __slots__ = ("files",)
    files: tuple[str, ...]

    def __new__(cls, files: Sequence[str]) -> ImagePath:
        """Make the path of one or more files."""
        path = super().__new__(cls, files[0])
        path.files = tuple(files)
        return path

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What a copy is made of."""
        return (self.files,)


def files_of(image: object) -> tuple[str, ...]:
    """Return the files of an image: several where it is an `ImagePath` of several."""
    return image.files if isinstance(image, ImagePath) else (str(image),)


def without_channel(path: str | Path) -> str:
    """Return a path without the number of a channel: ``NAME.nii.gz`` of ``NAME_0000.nii.gz``; others as they are."""
    stem, suffix = _parts(str(path))
    return _CHANNEL.sub("", stem) + suffix


def namesake(image: str) -> str:
    """Return the path that a case is named by: of several files without the number of the channel."""
    return without_channel(image) if len(files_of(image)) > 1 else image


def in_folder(folder: Path, image: str) -> ImagePath:
    """Return the path of an image that is relative to a folder."""
    return ImagePath([str(folder / file) for file in files_of(image)])


def channel_files(folder: Path, entry: str | Sequence[str]) -> list[str]:
    """Find the files of an entry of a list.

    Args:
        folder: what paths are relative to.
        entry: a path, or the paths of all channels. A path that does not exist stands for ``NAME_0000``,
            ``NAME_0001``, …, where these do.

    Returns:
        Paths as in the entry.
    """
    if not isinstance(entry, str):
        return [str(path) for path in entry]
    stem, suffix = _parts(entry)
    numbered = (f"{stem}_{number:04}{suffix}" for number in itertools.count())
    found = [] if (folder / entry).exists() else list(itertools.takewhile(lambda p: (folder / p).exists(), numbered))
    return found or [entry]


def join_channels(paths: Sequence[Path]) -> list[ImagePath]:
    """Make one image of the files ``NAME_0000``, ``NAME_0001``, … of a folder; others are images by themselves."""
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(without_channel(path), []).append(str(path))
    return [ImagePath(files) for files in groups.values()]


def _parts(path: str) -> tuple[str, str]:
    suffix = next((end for end in IMAGE_SUFFIXES if path.lower().endswith(end)), "")
    return path[: len(path) - len(suffix)], path[len(path) - len(suffix) :]
