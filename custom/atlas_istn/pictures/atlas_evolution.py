# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of the atlas as it changes during training: a frame per epoch, an animated GIF and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.font_manager import findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from ..io.files import write_whole
from ..networks import AtlasISTN
from .palette import LETTERS, label_colour
from .planes import Plane, middle_planes

__all__ = ["FOLDER", "atlas_frame", "atlas_picture", "draw_evolution", "find_frames", "frame_name"]

FOLDER = "atlas_evolution"
HEIGHT = 160  # pixels of the lowest plane in a frame
GAP = 4  # pixels between planes
TITLE = 7  # the line above a frame is by this smaller
SECONDS = 12.0  # length of the animation, at most
LAST_PAUSE = 1.5  # seconds that the last frame stays


def frame_name(epoch: int) -> str:
    """Return the name of the file with the frame of an epoch, counted from 1."""
    return f"epoch_{epoch:04d}.png"


def find_frames(folder: Path) -> list[Path]:
    """Find the frames in a folder, in the order of the epochs, the final one last; what is half-written is none."""
    return sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))


def atlas_frame(image: Tensor, labels: Tensor, spacing: Sequence[float]) -> Image.Image:
    """Draw an atlas: for each plane through the middle the image, and then the labels in colours.

    Args:
        image: ``[*shape]``.
        labels: probabilities ``[Nc, *shape]``, background first.
        spacing: voxel size.
    """
    grey = image.float().cpu().numpy()
    low, high = np.percentile(grey, [0.5, 99.5])
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    foreground = labels[1:].float().cpu().numpy().clip(0, 1)
    colours = np.array([ImageColor.getrgb(label_colour(number)) for number in range(len(foreground))]) / 255
    mixed = np.einsum("c...,ck->k...", foreground, colours).clip(0, 1)
    planes = middle_planes(image.shape, spacing)
    scale = HEIGHT / min(plane.size[1] for plane in planes)  # pixels per mm
    cuts = [(plane, volume) for volume in (np.repeat(grey[None], 3, axis=0), mixed) for plane in planes]
    pictures = [_picture(plane, volume, scale) for plane, volume in cuts]
    frame = Image.new("RGB", (sum(p.width + GAP for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        frame.paste(picture, (left, 0))
        left += picture.width + GAP
    return frame


def atlas_picture(network: AtlasISTN) -> Image.Image:
    """Draw the atlas of a network."""
    return atlas_frame(network.atlas_image[0, 0], network.atlas_labels[0], network.spacing)


def _picture(plane: Plane, volume: npt.NDArray[np.float64], scale: float) -> Image.Image:
    """Draw a plane of a coloured volume ``[3, *shape]`` in its physical shape, with the sides at its edges."""
    pixels = np.moveaxis(plane.cut(volume), 0, -1)
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    width, height = (max(1, round(scale * length)) for length in plane.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(picture), _font(HEIGHT // 12)
    places = (
        (3, height // 2, "lm"),
        (width - 3, height // 2, "rm"),
        (width // 2, 2, "mt"),
        (width // 2, height - 2, "mb"),
    )
    for letter, (x, y, anchor) in zip(plane.letters, places, strict=False):
        draw.text((x, y), letter, fill=LETTERS, font=font, anchor=anchor, stroke_width=1, stroke_fill="black")
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def draw_evolution(output_dir: str | Path, frames: int = 8, name: str = FOLDER) -> None:
    """Join the pictures that training made of the atlas: ``atlas_evolution.gif`` and ``atlas_evolution.png``.

    Training does this when it ends; the command serves a run that still goes on or was stopped.

    Args:
        output_dir: folder of a training run.
        frames: number of pictures in ``atlas_evolution.png``, evenly spread over the epochs.
        name: of the folder of the pictures; ``itn_evolution`` of a pairwise ISTN.

    Raises:
        InputError: the folder holds no such pictures, one cannot be read, or ``frames`` is no positive number.
    """
    folder = Path(output_dir)
    paths = find_frames(folder / name)
    if not paths:
        raise InputError(
            f"{folder / name}: no pictures of the atlas. Expected those that training writes after each epoch. Give "
            "the output_dir of a training run."
        )
    if not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames: expected a positive number of pictures, found {frames!r}.")
    titled = [_titled(path) for path in paths]
    sizes = {picture.size for picture in titled}
    if len(sizes) > 1:
        raise InputError(f"{folder / name}: the pictures have different sizes. Remove those of an older run.")
    seconds = [min(SECONDS / len(titled), 0.5)] * (len(titled) - 1) + [LAST_PAUSE]
    write_whole(
        folder / f"{name}.gif",
        lambda part: titled[0].save(
            part, save_all=True, append_images=titled[1:], duration=[round(1000 * s) for s in seconds], loop=0
        ),
    )
    places = np.linspace(0, len(titled) - 1, min(frames, len(titled))).round().astype(int)
    chosen = [titled[i] for i in np.unique(places)]
    columns = 2 if len(chosen) > 1 else 1
    width, height = chosen[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height), "white")
    for index, picture in enumerate(chosen):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    write_whole(folder / f"{name}.png", sheet.save)


def _titled(path: Path) -> Image.Image:
    """A frame under a line that names the epoch."""
    try:
        frame = Image.open(path).convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises the latter for some broken files
        raise InputError(
            f"{path}: expected a picture of the atlas that training wrote, found a file that cannot be read as one. "
            "Remove it."
        ) from error
    name, _, epoch = path.stem.partition("_")
    title = f"{name} {int(epoch)}" if epoch.isdigit() else path.stem
    line = max(frame.height // TITLE, 16)
    picture = Image.new("RGB", (frame.width, line + frame.height), "white")
    picture.paste(frame, (0, line))
    font = _font(2 * line // 3)
    ImageDraw.Draw(picture).text((line // 4, line // 2), title, fill="black", font=font, anchor="lm")
    return picture
