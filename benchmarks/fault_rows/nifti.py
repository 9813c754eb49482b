# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""NIfTI and PNG files: damaged, odd, or with headers that mislead."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .row import Row, Work
from .runs import AFFINE, infer, save, scan, write_nifti

__all__ = ["rows"]

Edit = Callable[[Path], object]
GOOD = "out/good/good_seg.nii.gz"


def _beside_a_good_one(edit: Edit, folder: Path) -> Work:
    save(folder / "scans" / "good.nii.gz", scan())
    edit(folder / "scans")
    return lambda: infer(folder)


def _header(**fields: object) -> Edit:
    return lambda folder: write_nifti(folder / "bad.nii", scan(), AFFINE, **fields)


def _voxels(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda folder: save(folder / "bad.nii.gz", change(scan()))


def _at(place: tuple[int | slice, ...], value: float) -> Edit:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels[place] = value
        return voxels

    return _voxels(change)


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / name).write_bytes(change((folder / "good.nii.gz").read_bytes()))


def _wide_png(folder: Path) -> None:
    """A PNG of 300 kB that unpacks to 10 GB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", 100000, 100000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 3 * 10**7)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "bad.png").write_bytes(png)


def _link(folder: Path) -> None:
    (folder / ".store").mkdir()
    (folder / "good.nii.gz").rename(folder / ".store" / "MD5E-s1--0.nii.gz")
    (folder / "good.nii.gz").symlink_to(Path(".store") / "MD5E-s1--0.nii.gz")


def _turned(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turned = AFFINE.copy()
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turned


def _metres(size: float) -> dict[str, object]:
    form = np.diag([size, size, size, 1])
    return {"sform": form, "qform": form, "pixdim": [1, size, size, size, 0, 0, 0, 0]}


def _thick() -> np.ndarray:
    return np.diag([1.0, 1.0, 1.2, 1.0])


REFUSED: dict[str, tuple[Edit, str]] = {
    "cut off": (_bytes("bad.nii.gz", lambda content: content[:2000]), "cannot be read"),
    "text": (lambda folder: (folder / "bad.nii.gz").write_text("no image"), "cannot be read"),
    "empty": (lambda folder: (folder / "bad.nii.gz").touch(), "cannot be read"),
    "one byte changed in the gzip": (
        _bytes("bad.nii.gz", lambda content: content[:3000] + bytes([content[3000] ^ 255]) + content[3001:]),
        "cannot be read",
    ),
    "not compressed, but named so": (
        lambda folder: write_nifti(folder / "x.nii", scan(), AFFINE).rename(folder / "bad.nii.gz"),
        "cannot be read",
    ),
    "voxels missing in .nii": (
        lambda folder: (folder / "bad.nii").write_bytes(gzip.decompress((folder / "good.nii.gz").read_bytes())[:9000]),
        "cannot be read",
    ),
    "a voxel not a number": (_at((3, 3, 3), np.nan), "finite"),
    "an infinite voxel": (_at((3, 3, 3), np.inf), "finite"),
    "constant": (_voxels(lambda voxels: np.full_like(voxels, 7)), "constant"),
    "time series": (_voxels(lambda voxels: np.stack([voxels, voxels], -1)), "channels"),
    "plane": (_voxels(lambda voxels: voxels[:, :, 0]), "2 dimensions"),
    "complex numbers": (_voxels(lambda voxels: voxels.astype(np.complex64)), "complex"),
    "colours": (
        _voxels(lambda voxels: np.zeros(voxels.shape, [(name, np.uint8) for name in "RGB"])),
        "bad.nii.gz",
    ),
    "grey PNG among volumes": (
        lambda folder: Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20) // 2).save(folder / "bad.png"),
        "2 dimensions",
    ),
    "colour PNG": (lambda folder: Image.new("RGB", (20, 20), (1, 2, 3)).save(folder / "bad.png"), "bad.png"),
    "PNG that unpacks to 10 GB": (_wide_png, "bad.png"),
    "damaged PNG": (lambda folder: (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n123"), "cannot be read"),
    "damaged NRRD": (lambda folder: (folder / "bad.nrrd").write_text("NRRD0004\ntype: float\n"), "cannot be read"),
    "damaged MHA": (lambda folder: (folder / "bad.mha").write_text("ObjectType = Image\n"), "cannot be read"),
    "spacing 0": (_header(pixdim=[1, 0, 1, 1, 0, 0, 0, 0], sform_code=0), "bad.nii"),
    "sform not a number": (_header(srow_x=[np.nan] * 4, qform_code=0), "bad.nii"),
    "singular sform": (_header(srow_x=[0, 0, 0, 0], qform_code=0), "bad.nii"),
    "units unknown": (_header(xyzt_units=7), "unit"),
    "voxels of a metre": (
        _header(**_metres(1000.0)),
        "memory",
    ),
    "claims 30000 × 30000 × 30000 voxels": (_header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "bad.nii"),
    "link that leads nowhere": (lambda folder: (folder / "bad.nii.gz").symlink_to("missing"), "leads nowhere"),
}
TOLD: dict[str, tuple[Edit, str]] = {
    "no orientation": (_header(sform_code=0, qform_code=0), "no orientation"),
    "sform and qform differ": (_header(sform=_turned(12)), "bad.nii: "),
    "spacing of the sform differs": (_header(sform=_thick()), "bad.nii: "),
    "negative pixdim": (_header(pixdim=[-1, -1, -1, -1, 0, 0, 0, 0], sform_code=0), "bad.nii: "),
    "border of -1024": (_at((slice(None), slice(None), 0), -1024), "padding"),
    "notes beside the scans": (lambda folder: (folder / "notes.txt").write_text("x"), "not used: notes.txt"),
    "metres": (
        _header(**_metres(0.001), xyzt_units=1),
        "results of 2 cases",
    ),
    "one hot voxel": (_at((2, 2, 2), 32767), "results of 2 cases"),
    "an empty scaling": (_header(scl_slope=np.nan), "results of 2 cases"),
    "eight-byte numbers": (_voxels(lambda voxels: voxels.astype(np.float64)), "results of 2 cases"),
    "a name with blanks, letters and a line break": (
        lambda folder: save(folder / "ä ß\n'$(x)'.nii.gz", scan()),
        "results of 2 cases",
    ),
    "names that differ in capitals": (lambda folder: save(folder / "GOOD.nii.gz", scan()), "results of 2 cases"),
    "a scan called atlas": (lambda folder: save(folder / "atlas.nii.gz", scan()), "results of 2 cases"),
}


def rows() -> Iterator[Row]:
    """All faults of this kind."""
    for name, (edit, reason) in REFUSED.items():
        says = ("1 of 2 cases failed", reason)
        yield Row("NIfTI and PNG", name, partial(_beside_a_good_one, edit), 1, says, (GOOD, "out/summary.csv"))
    for name, (edit, reason) in TOLD.items():
        yield Row("NIfTI and PNG", name, partial(_beside_a_good_one, edit), 0, (reason,), ("out/*/*_seg.nii.gz",))
    name = "links into a store of hashes"
    yield Row("NIfTI and PNG", name, partial(_beside_a_good_one, _link), 0, ("results of 1 cases",), (GOOD,))
