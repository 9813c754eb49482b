# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of the atlas as it changes during training: a frame per epoch, an animated GIF and a contact sheet."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.font_manager import findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from ..io.files import write_whole
from ..networks import AtlasISTN
from ..pictures.conventions import LABEL_COLOURS

__all__ = ["AtlasEvolution", "draw_evolution"]

FOLDER = "atlas_evolution"
HEIGHT = 160  # pixels of a frame, at least
TITLE = 7  # the line above a frame is by this smaller
SECONDS = 12.0  # length of the animation, at most
LAST_PAUSE = 1.5  # seconds that the last frame stays


class AtlasEvolution:
    """Trainer handler that saves a picture of the atlas after every epoch, and an animation at the end.

    The frames lie in ``output_dir/atlas_evolution`` as ``epoch_0001.png``, and so on; the one after the rebuilds of the
    final atlas is ``final.png``. A resumed run goes on with the frames of the run before it.

    Args:
        network: holds the atlas.
        output_dir: the folder of the training run.
    """

    def __init__(self, network: AtlasISTN, output_dir: str) -> None:
        self.network = network
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind the handlers that change the atlas; only the first rank draws."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _save_epoch(self, engine: Engine) -> None:
        name = _frame_name(engine.state.epoch)
        for path in (self.output_dir / FOLDER).glob("*.png"):
            if path.name > name:  # of an earlier run that went farther; "final" comes behind every epoch
                path.unlink()
        self._save(name)

    def _finish(self) -> None:
        self._save("final.png")
        draw_evolution(self.output_dir)

    def _save(self, name: str) -> None:
        frame = atlas_frame(self.network.atlas_image[0, 0], self.network.atlas_labels[0])
        write_whole(self.output_dir / FOLDER / name, frame.save)


def _frame_name(epoch: int) -> str:
    return f"epoch_{epoch:04d}.png"


def atlas_frame(image: Tensor, labels: Tensor) -> Image.Image:
    """Picture of an atlas: for each plane through the middle the image, and beside it the labels in colours.

    Args:
        image: ``[*shape]``.
        labels: probabilities ``[Nc, *shape]``, background first.
    """
    grey = image.float().cpu().numpy()
    low, high = np.percentile(grey, [0.5, 99.5])
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    colours = np.array([ImageColor.getrgb(colour) for colour in LABEL_COLOURS]) / 255
    foreground = labels[1:].float().cpu().numpy().clip(0, 1)
    mixed = np.einsum("c...,ck->...k", foreground, colours[np.arange(len(foreground)) % len(colours)]).clip(0, 1)
    pair = (np.repeat(grey[..., None], 3, axis=-1), mixed)
    planes = [plane for volume in pair for plane in _middle_planes(volume)]
    factor = -(-HEIGHT // min(plane.shape[0] for plane in planes))
    pictures = [np.kron(plane, np.ones((factor, factor, 1))) for plane in planes]
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(picture, ((0, height - len(picture)), (0, 4), (0, 0))) for picture in pictures]
    return Image.fromarray((np.concatenate(padded, axis=1) * 255).round().astype(np.uint8))


def _middle_planes(volume: np.ndarray) -> list[np.ndarray]:
    """Planes ``[rows, columns, 3]`` of ``[X, Y(, Z), 3]``: y down in 2D, as in a PNG; superior or anterior up in 3D."""
    if volume.ndim == 3:
        return [volume.transpose(1, 0, 2)]
    x, y, z = (n // 2 for n in volume.shape[:3])
    return [plane.transpose(1, 0, 2)[::-1] for plane in (volume[:, :, z], volume[:, y], volume[x])]


def draw_evolution(output_dir: str | Path, frames: int = 8) -> None:
    """Join the pictures that training made of the atlas: ``atlas_evolution.gif`` and ``atlas_evolution.png``.

    Training does this when it ends; the command serves a run that still goes on or was stopped.

    Args:
        output_dir: folder of a training run.
        frames: number of pictures in ``atlas_evolution.png``, evenly spread over the epochs.

    Raises:
        InputError: the folder holds no such pictures, one cannot be read, or ``frames`` is no positive number.
    """
    folder = Path(output_dir)
    paths = sorted((folder / FOLDER).glob("*.png"))
    if not paths:
        raise InputError(
            f"{folder / FOLDER}: no pictures of the atlas. Expected those that training writes after each epoch. Give "
            "the output_dir of a training run."
        )
    if not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames: expected a positive number of pictures, found {frames!r}.")
    titled = [_titled(path) for path in paths]
    sizes = {picture.size for picture in titled}
    if len(sizes) > 1:
        raise InputError(f"{folder / FOLDER}: the pictures have different sizes. Remove those of an older run.")
    seconds = [min(SECONDS / len(titled), 0.5)] * (len(titled) - 1) + [LAST_PAUSE]
    write_whole(
        folder / "atlas_evolution.gif",
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
    write_whole(folder / "atlas_evolution.png", sheet.save)


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
    font = ImageFont.truetype(findfont("DejaVu Sans"), 2 * line // 3)
    ImageDraw.Draw(picture).text((line // 4, line // 2), title, fill="black", font=font, anchor="lm")
    return picture
