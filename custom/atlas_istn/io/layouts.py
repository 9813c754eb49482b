# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which image belongs to which label in folders that have no lists.

Two layouts are known. In the first, images and labels lie in folders of their own, ``images`` and ``labels``,
``imagesTr`` and ``labelsTr``, ``train/images`` and ``train/masks``. In the second, labels lie beside their images, or
in a second tree of the same folders as in the derivatives of BIDS, and are known by their names: ``NAME_gt``,
``NAME_seg``, ``segmentation``, ….
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from .channels import ImagePath, files_of, join_channels, namesake, without_channel
from .files import walk
from .names import IMAGE_SUFFIXES, case_names

__all__ = ["Labelled", "LabelledImage", "fits", "labelled_images"]

_LABEL = r"(?:d?seg|segmentations?|labels?|labelmap|masks?|gt|ground_?truth|annotations?)"
_IMAGE = r"(?:images?|img|imaging|volume)"
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_SHOWN = 5


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label.

    Attributes:
        name: of the case.
        image: path, relative to the data set.
        label: likewise.
        group: what follows ``images`` in the name of the folder, or the folder of a split that it lies in.
    """

    name: str
    image: ImagePath
    label: str
    group: str


@dataclass
class Labelled:
    """What folders hold.

    Attributes:
        cases: images with labels.
        left: group → names of images without a label, or of labels without an image.
    """

    cases: list[LabelledImage] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What is left out, in a line for each reason."""
        return [
            f"{len(names)} {what}: left out ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
            for what, names in self.left.items()
        ]


def labelled_images(folder: Path, leave_out: Sequence[str] = ()) -> Labelled:
    """Find the images with labels of a folder and all within it.

    Args:
        folder: of the data set.
        leave_out: patterns of files that are taken for missing, see `fits`.
    """
    folders = {}
    for inner, files in walk(folder):
        paths = [path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES)]
        kept = [path for path in paths if not fits(path.relative_to(folder), leave_out)]
        if kept:
            folders[inner] = kept
    pairs, left_images, left_labels = _in_two_folders(folder, folders)
    if not pairs:
        pairs, left_images, left_labels = _side_by_side(folder, folders)
    names = _names([image for image, _, _ in pairs], folder)
    found = Labelled()
    for name, (image, label, group) in zip(names, pairs, strict=True):
        channels = [str(Path(file).relative_to(folder)) for file in files_of(image)]
        found.cases.append(LabelledImage(name, ImagePath(channels), str(label.relative_to(folder)), group))
    for what, paths in (("images without a label", left_images), ("labels without an image", left_labels)):
        if paths:
            found.left[what] = [str(path.relative_to(folder)) for path in paths]
    return found


def fits(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a relative path, or the name of its file without suffix, fits one of some patterns with ``*``."""
    texts = (path.as_posix(), _stem(path))
    return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)


_Pair = tuple[ImagePath, Path, str]


def _in_two_folders(root: Path, folders: dict[Path, list[Path]]) -> tuple[list[_Pair], list[Path], list[Path]]:
    found: list[_Pair] = []
    left_images: list[Path] = []
    left_labels: list[Path] = []
    for folder, images in folders.items():
        match = re.fullmatch(r"images?[-_]?(.*)", folder.name, re.IGNORECASE)
        if not match or folder == root:
            continue
        ending = match[1]
        alike = re.compile(rf"(labels?|masks?|segmentations?)[-_]?{re.escape(ending)}", re.IGNORECASE)
        others = [other for other in folders if other.parent == folder.parent and alike.fullmatch(other.name)]
        if others:
            pairs, alone, lonely = _match(images, [label for other in others for label in folders[other]])
            group = ending or _split(folder.relative_to(root))
            found += [(image, label, group) for image, label in pairs]
            left_images += alone
            left_labels += lonely
    return found, left_images, left_labels


def _side_by_side(root: Path, folders: dict[Path, list[Path]]) -> tuple[list[_Pair], list[Path], list[Path]]:
    images = {folder: [path for path in paths if not _is_label(path)] for folder, paths in folders.items()}
    found: list[_Pair] = []
    lonely: list[Path] = []
    for folder, paths in folders.items():
        labels = [path for path in paths if _is_label(path)]
        # Derivatives have the folders of their images within one of their own.
        inner = folder.relative_to(root).parts
        mirrored = [root.joinpath(*inner[start:]) for start in range(1, len(inner))]
        for place in [folder, *(place for place in mirrored if place in images)]:
            pairs, images[place], labels = _match(images.get(place, []), labels)
            sole = [label for label in labels if place != folder or _begins(images[place], label)]
            if len(images[place]) == len(sole) == 1:  # such as sub-01_T1w and sub-01_dseg
                pairs.append((ImagePath([str(images[place].pop())]), sole[0]))
                labels.remove(sole[0])
            found += [(image, label, _split(place.relative_to(root))) for image, label in pairs]
        lonely += labels
    return found, [path for paths in images.values() for path in paths] if found else [], lonely


def _match(
    images: Sequence[Path], labels: Sequence[Path]
) -> tuple[list[tuple[ImagePath, Path]], list[Path], list[Path]]:
    """Pairs by names, and the images and labels that are in none; the channels of an image are joined."""
    known = {name for label in labels for name in (_stem(label), _without(_LABEL, _stem(label)))}
    whole = [path for path in images if _stem(path) in known]
    candidates = [ImagePath([str(path)]) for path in whole] + join_channels([p for p in images if p not in whole])
    names: list[Callable[[str], str]] = [
        lambda image: _stem(Path(image)),
        lambda image: _stem(Path(without_channel(image))),
        lambda image: _without(_IMAGE, _stem(Path(image))),
    ]
    pool: dict[str, ImagePath] = {}
    for name in names:
        for image in candidates:
            pool.setdefault(name(image), image)
    pairs: list[tuple[ImagePath, Path]] = []
    taken: set[str] = set()
    lonely = []
    for label in labels:
        found = pool.get(_stem(label)) or pool.get(_without(_LABEL, _stem(label)))
        if found is None or found in taken:
            lonely.append(label)
        else:
            taken.add(found)
            pairs.append((found, label))
    alone = [Path(file) for image in candidates if image not in taken for file in files_of(image)]
    return sorted(pairs), alone, lonely


def _begins(images: Sequence[Path], label: Path) -> bool:
    return all(_stem(image).startswith(_without(_LABEL, _stem(label))) for image in images)


def _is_label(path: Path) -> bool:
    return _without(_LABEL, _stem(path)) != _stem(path)


def _without(word: str, stem: str) -> str:
    """A stem without a word at its beginning or end."""
    return re.sub(rf"^{word}([-_.]+|(?=\d)|$)|[-_.]+{word}$", "", stem, count=1, flags=re.IGNORECASE)


def _split(path: Path) -> str:
    """The folder of a split, such as ``training``, that a path leads through."""
    return next((part for part in reversed(path.parts) if part.lower() in _SPLITS), "")


def _names(images: Sequence[ImagePath], root: Path) -> list[str]:
    """Names by the files, or, where these are alike in several folders, by what tells the folders apart too."""
    paths = [Path(namesake(image)).relative_to(root) for image in images]
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_stem(path).casefold(), []).append(path)
    full = {path: "_".join([*_apart(group, path), path.name]) for group in groups.values() for path in group}
    return case_names([full[path] for path in paths])


def _apart(group: Sequence[Path], path: Path) -> list[str]:
    """The folders of a path but those that all paths of a group have at the same depth."""
    others = [other.parent.parts for other in group]
    return [
        part
        for depth, part in enumerate(path.parent.parts)
        if {parts[depth : depth + 1] for parts in others} != {(part,)}
    ]


def _stem(path: Path) -> str:
    suffix = next((end for end in IMAGE_SUFFIXES if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(suffix)]
