# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Input that several test modules need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.ndimage import gaussian_filter

from atlas_istn.networks import AtlasISTN, SpatialTransformerNetwork, UNet

torch.set_num_threads(1)  # the tests are small, and runs on several threads need not repeat to the last bit

Tags = dict[str, Any]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, alone and behind others, whatever process runs it."""
    torch.manual_seed(0)


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def dim(request: pytest.FixtureRequest) -> int:
    """Tests that ask for it run in 2D and in 3D."""
    return request.param


@pytest.fixture
def smooth_field() -> Callable[..., torch.Tensor]:
    """A function that makes a smooth random field [B, dim, *shape] in float64, whose longest vector is `amplitude`."""

    def make(
        shape: tuple[int, ...], amplitude: float, sigma: float = 8.0, seed: int = 0, batch: int = 1
    ) -> torch.Tensor:
        noise = np.random.default_rng(seed).standard_normal((batch, len(shape), *shape))
        field = torch.from_numpy(gaussian_filter(noise, (0, 0, *[sigma] * len(shape)), mode="nearest"))
        return field * amplitude / field.norm(dim=1).flatten(1).amax(1).reshape(-1, *[1] * (1 + len(shape)))

    return make


@pytest.fixture
def ring() -> Callable[..., torch.Tensor]:
    """A function that draws a ring (in 3D a hollow ball), soft at its edges, as a labelmap [1, 2, *shape]."""

    def draw(shape: tuple[int, ...], shift: float = 0.0, radius: float = 0.3) -> torch.Tensor:
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 - shift for n in shape]
        distance = torch.stack(torch.meshgrid(axes, indexing="ij")).norm(dim=0)
        size = min(shape)
        inside = torch.sigmoid(2 * (radius * size - distance)) * torch.sigmoid(2 * (distance - 0.12 * size))
        return torch.stack([1 - inside, inside]).unsqueeze(0)

    return draw


@pytest.fixture
def tiny_network(ring: Callable[..., torch.Tensor]) -> Callable[..., AtlasISTN]:
    """A function that builds a small Atlas-ISTN for two classes whose atlas is a ring."""

    def build(shape: tuple[int, ...], **changes: Any) -> AtlasISTN:
        torch.manual_seed(0)
        dim = len(shape)
        parts = {"itn": UNet(dim, 1, 2, (4, 8)), "stn": SpatialTransformerNetwork(dim, 2, (4, 8))} | changes
        network = AtlasISTN(spatial_size=shape, num_classes=2, **parts)
        network.atlas_labels.copy_(ring(shape))
        network.atlas_image.copy_(network.atlas_labels[:, 1:])
        return network

    return build


@pytest.fixture
def write_series() -> Callable[..., np.ndarray]:
    """A function that writes an MR series of 6 slices, 5 rows × 4 columns, 2 mm apart, and returns them [z, y, x].

    ``edit(index, tags)`` may change the tags of a slice, or return False to leave it out. File names are in
    reverse order. Other ``pixels`` [z, y, x] can be given.
    """

    def write(
        folder: Path,
        edit: Callable[[int, Tags], bool | None] = lambda index, tags: None,
        pixels: np.ndarray | None = None,
    ) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.uint16)
        series = generate_uid()
        for index, plane in enumerate(pixels):
            tags: Tags = {
                "PatientName": "Secret^Name",
                "SeriesInstanceUID": series,
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [10, 20, 30 + 2 * index],
                "PixelSpacing": [1.5, 0.5],
                "InstanceNumber": index + 1,
                "SamplesPerPixel": 1,
            }
            if edit(index, tags) is not False:
                _write_slice(folder / f"{len(pixels) + 3 - index}.dcm", plane, tags)
        return pixels

    return write


@pytest.fixture
def write_enhanced() -> Callable[..., np.ndarray]:
    """A function that writes the volume of `write_series` as one enhanced MR file, and returns it [z, y, x].

    Frames are stored in the ``order`` given, by default from the last to the first. ``edit(frame, groups)`` may change
    the functional groups of a frame.
    """

    def write(
        path: Path,
        order: Sequence[int] = range(5, -1, -1),
        edit: Callable[[int, pydicom.Dataset], None] = lambda frame, groups: None,
    ) -> np.ndarray:
        pixels = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.uint16)
        groups = []
        for position, frame in enumerate(order):
            group = _sequence_item(PlanePositionSequence={"ImagePositionPatient": [10, 20, 30 + 2 * frame]})
            group.FrameContentSequence = [_dataset(StackID="1", InStackPositionNumber=position + 1)]
            edit(frame, group)
            groups.append(group)
        shared = _sequence_item(
            PixelMeasuresSequence={"PixelSpacing": [1.5, 0.5], "SliceThickness": 2},
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -10, "RescaleType": "US"},
        )
        tags: Tags = {
            "SOPClassUID": EnhancedMRImageStorage,
            "PatientName": "Secret^Name",
            "PatientID": "Secret-ID",
            "StudyInstanceUID": generate_uid(),
            "SeriesInstanceUID": generate_uid(),
            "FrameOfReferenceUID": generate_uid(),
            "SeriesNumber": 7,
            "SamplesPerPixel": 1,
            "NumberOfFrames": len(order),
            "SharedFunctionalGroupsSequence": [shared],
            "PerFrameFunctionalGroupsSequence": groups,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_slice(path, pixels[list(order)], tags)
        return 2 * pixels - 10.0

    return write


def _dataset(**tags: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def _sequence_item(**groups: Tags) -> pydicom.Dataset:
    return _dataset(**{name: [_dataset(**tags)] for name, tags in groups.items()})


@pytest.fixture
def read_segmentation() -> Callable[..., np.ndarray]:
    """A function that reads a DICOM SEG by highdicom or dcmqi and returns its classes on a grid, by positions alone."""

    def read(path: Path, affine: np.ndarray, shape: tuple[int, ...], reader: str = "highdicom") -> np.ndarray:
        frames = _with_highdicom(path) if reader == "highdicom" else _with_dcmqi(path)
        voxels = np.argwhere(np.ones(frames.shape, dtype=bool))
        targets = nib.affines.apply_affine(np.linalg.inv(affine) @ frames.affine, voxels)
        indices = targets.round().astype(int)
        np.testing.assert_allclose(targets, indices, atol=0.01)  # frames lie on the grid; positions are decimals
        classes = np.zeros(shape, dtype=int)
        classes[tuple(indices.T)] = np.asanyarray(frames.dataobj).reshape(-1)
        return classes

    return read


def _with_highdicom(path: Path) -> nib.Nifti1Image:
    highdicom = pytest.importorskip("highdicom")
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    return nib.Nifti1Image(volume.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)


def _with_dcmqi(path: Path) -> nib.Nifti1Image:
    tool = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("dcmqi is not installed")
    folder = path.parent / f"{path.stem}_dcmqi"
    folder.mkdir()
    options = ["--outputType", "nifti", "--mergeSegments", "--inputDICOM", path, "--outputDirectory", folder]
    subprocess.run([tool, *map(str, options)], check=True, capture_output=True)
    return nib.load(next(folder.glob("*.nii.gz")))


def _write_slice(path: Path, plane: np.ndarray, tags: Tags) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "MR", "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = plane.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path, enforce_file_format=True)
