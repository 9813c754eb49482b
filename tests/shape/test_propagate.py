# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
import torch

from atlas_istn.errors import InputError
from atlas_istn.io.outputs import write_image, write_labelmap
from atlas_istn.io.results import read_atlas_to_subject
from atlas_istn.shape.mesh import mesh
from atlas_istn.shape.motion import motion
from atlas_istn.shape.propagate import move_points, propagate
from atlas_istn.shape.run import Run
from atlas_istn.shape.surfaces import read_surface
from atlas_istn.spatial import Transform, compose_affine
from shape_runs import command, half_ball_network, write_run

SHIFT = {"left": 3.0, "right": -2.0}  # voxels along the first axis, of the points of the atlas


def shape_of(dim: int) -> tuple[int, ...]:
    return (24, 20, 16)[:dim]


def transform(shape: tuple[int, ...], shift: float = 0.0, field: torch.Tensor | None = None) -> Transform:
    """A shift by whole voxels of 2 mm along the first axis, after a deformation."""
    dim = len(shape)
    parameters = torch.zeros(1, 5 if dim == 2 else 9)
    parameters[0, 0] = 2 * shift
    half = tuple(n // 2 for n in shape)
    velocity = torch.zeros(1, dim, *half) if field is None else field
    return Transform(velocity, compose_affine(parameters), shape, (2.0,) * dim)


def subject_affine(dim: int) -> np.ndarray:
    affine = np.diag([2.0, 2.0, 2.0 if dim == 3 else 1.0, 1.0])
    affine[:dim, 3] = (10.0, -20.0, 5.0)[:dim]
    return affine


@pytest.fixture
def run_dir(tmp_path: Path, dim: int) -> Path:
    """Two subjects, shifted by known amounts."""
    shape = shape_of(dim)
    cases = {name: transform(shape, shift) for name, shift in SHIFT.items()}
    return write_run(tmp_path / "out", half_ball_network(shape), cases, subject_affine(dim))


def test_points_go_where_the_itk_files_say(tmp_path: Path, smooth_field: Callable[..., torch.Tensor], dim: int) -> None:
    shape = shape_of(dim)
    field = smooth_field(tuple(n // 2 for n in shape), amplitude=1.5, sigma=3.0).float()
    folder = write_run(
        tmp_path / "out", half_ball_network(shape), {"a": transform(shape, 1.5, field)}, subject_affine(dim)
    )
    run = Run.open(folder)
    names = ("atlas_to_subject", "subject_to_atlas")
    itk = {name: sitk.ReadTransform(str(folder / "a" / f"a_{name}.h5")) for name in names}
    points = np.random.default_rng(0).uniform(-12, 12, (30, dim))
    # The file that resamples the subject onto the atlas takes points of the atlas to the subject, and the other back.
    subject = move_points(run, points, "atlas", "a")
    expected = [itk["subject_to_atlas"].TransformPoint(point.tolist()) for point in points]
    np.testing.assert_allclose(subject, expected, atol=1e-4)  # the files hold float32
    back = move_points(run, subject, "a", "atlas")
    expected = [itk["atlas_to_subject"].TransformPoint(point.tolist()) for point in subject]
    np.testing.assert_allclose(back, expected, atol=1e-4)
    # exp(−v) is the inverse of exp(v) but for linear interpolation: a tenth of a voxel of 2 mm.
    np.testing.assert_allclose(back, points, atol=0.2)


def test_points_of_a_table_go_from_subject_to_subject(run_dir: Path, tmp_path: Path, dim: int) -> None:
    start = Run.open(run_dir).registration("left")
    middle = start.to_subject(np.zeros((1, dim)))  # the centre of the atlas
    (tmp_path / "p.csv").write_text("name,x,y,z\ncentre," + ",".join(map(str, [*middle[0], *[7.0] * (3 - dim)])) + "\n")
    propagate(run_dir, tmp_path / "p.csv", source="left", target="right")
    with (run_dir / "propagated" / "right" / "p_left_to_right.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    moved = np.array([float(row[axis]) for axis in "xyz"])
    # Both shifts are along the first axis, 2 mm a voxel; in LPS x points the other way.
    expected = middle[0] - np.eye(dim)[0] * 2 * (SHIFT["right"] - SHIFT["left"])
    np.testing.assert_allclose(moved[:dim], expected, atol=1e-5)
    if dim == 2:
        assert moved[2] == 7.0


def test_a_label_map_of_the_atlas_becomes_that_of_the_subject(run_dir: Path, dim: int) -> None:
    propagate(run_dir, run_dir / "atlas" / "atlas_labelmap.nii.gz")
    for case in SHIFT:
        moved = nib.load(run_dir / "propagated" / case / f"atlas_labelmap_atlas_to_{case}.nii.gz")
        own = nib.load(run_dir / case / f"{case}_seg.nii.gz")
        np.testing.assert_array_equal(moved.get_fdata(), own.get_fdata())  # whole voxels: nothing is interpolated
        np.testing.assert_allclose(moved.affine, own.affine)


def test_label_maps_go_to_the_atlas_and_to_other_subjects(run_dir: Path) -> None:
    propagate(run_dir, run_dir / "left" / "left_seg.nii.gz", source="left", target="atlas")
    propagate(run_dir, run_dir / "left" / "left_seg.nii.gz", source="left", target="all")
    atlas = nib.load(run_dir / "atlas" / "atlas_labelmap.nii.gz").get_fdata()
    found = nib.load(run_dir / "propagated" / "atlas" / "left_seg_left_to_atlas.nii.gz").get_fdata()
    np.testing.assert_array_equal(found, atlas)
    right = nib.load(run_dir / "propagated" / "right" / "left_seg_left_to_right.nii.gz").get_fdata()
    np.testing.assert_array_equal(right, nib.load(run_dir / "right" / "right_seg.nii.gz").get_fdata())
    assert not (run_dir / "propagated" / "left").exists()


def test_an_image_on_a_finer_grid_is_resampled_where_it_lies(run_dir: Path, tmp_path: Path, dim: int) -> None:
    # An image of the subject "left" on another grid, whose grey value is the first RAS coordinate.
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:dim, 3] = (-30.0, -40.0, -10.0)[:dim]
    shape = (140, 120, 80)[:dim]
    ramp = np.indices(shape)[0] - 30.0
    plane = affine if dim == 3 else np.block([[affine[:2, :2], affine[:2, 3:]], [0, 0, 1]])
    write_image(ramp.astype(np.float32), plane, tmp_path / "ramp.nii.gz")
    propagate(run_dir, tmp_path / "ramp.nii.gz", source="left", target="right", labels=False)
    found = nib.load(run_dir / "propagated" / "right" / "ramp_left_to_right.nii.gz").get_fdata()
    # A voxel of "right" looks 5 voxels of 2 mm further right in "left".
    expected = 10 + 2 * np.indices(found.shape)[0] + 2 * (SHIFT["left"] - SHIFT["right"])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    write_image((ramp + 0.5).astype(np.float32), plane, tmp_path / "half.nii.gz")
    with pytest.raises(InputError, match="--labels false"):
        propagate(run_dir, tmp_path / "half.nii.gz", source="left", target="right")


def test_images_reach_half_a_voxel_beyond_their_outer_centres_as_in_itk(
    tmp_path: Path, smooth_field: Callable[..., torch.Tensor], dim: int
) -> None:
    # A small image in the middle of the atlas, bright up to its edges.
    shape = shape_of(dim)
    field = smooth_field(tuple(n // 2 for n in shape), amplitude=1.0, sigma=3.0).float()
    network, start = half_ball_network(shape), transform(shape, 0.3, field)
    folder = write_run(tmp_path / "out", network, {"a": start}, subject_affine(dim))
    affine = np.diag([3.0] * dim + [1.0])
    affine[:dim, dim] = -9.3
    voxels = np.random.default_rng(0).integers(5, 8, (7,) * dim).astype(np.float32)
    write_image(voxels, affine, tmp_path / "small.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "small.nii.gz"))
    reference = sitk.ReadImage(str(folder / "a" / "a_seg.nii.gz"))
    moving = sitk.ReadTransform(str(folder / "a" / "a_atlas_to_subject.h5"))
    resampled = sitk.Resample(image, reference, moving, sitk.sitkLinear, 0.0)
    expected = sitk.GetArrayFromImage(resampled).T
    propagate(folder, tmp_path / "small.nii.gz", target="a", labels=False)
    found = nib.load(folder / "propagated" / "a" / "small_atlas_to_a.nii.gz").get_fdata()
    assert (expected > 0).sum() > 8**dim  # without the outer half voxels a 19 mm cube has but 9.5 voxels along an edge
    np.testing.assert_allclose(found, expected, atol=1e-3)
    propagate(folder, tmp_path / "small.nii.gz", target="a")
    labels = nib.load(folder / "propagated" / "a" / "small_atlas_to_a.nii.gz").get_fdata()
    np.testing.assert_array_equal(labels > 0, expected > 0)


@pytest.mark.parametrize("dim", [3], indirect=True)
def test_the_reader_of_slicer_finds_points_where_the_itk_files_say(run_dir: Path, tmp_path: Path) -> None:
    points = {"head": (3.0, -4.0, 5.0), "tail": (-6.0, 2.5, -1.0)}  # LPS, of the atlas
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = 0\n"
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    rows = [f"{name},{-x},{-y},{z},0,0,0,1,1,1,0,{name},," for name, (x, y, z) in points.items()]
    (tmp_path / "p.fcsv").write_text(head + "\n".join(rows) + "\n")
    slicerio.fcsv_to_markups_json(tmp_path / "p.fcsv")
    # The file that resamples the subject onto the atlas takes points of the atlas to the subject.
    moving = sitk.ReadTransform(str(run_dir / "left" / "left_subject_to_atlas.h5"))
    expected = np.array([moving.TransformPoint(point) for point in points.values()])
    for suffix in (".fcsv", ".mrk.json"):
        propagate(run_dir, tmp_path / f"p{suffix}", target="left")
    markups = [
        slicerio.read_markups_fcsv(run_dir / "propagated" / "left" / "p_atlas_to_left.fcsv"),
        json.loads((run_dir / "propagated" / "left" / "p_atlas_to_left.mrk.json").read_text()),
    ]
    for markup in (found["markups"][0] for found in markups):
        sign = [-1, -1, 1] if markup["coordinateSystem"] == "RAS" else [1, 1, 1]
        places = {point["label"]: np.array(point["position"]) * sign for point in markup["controlPoints"]}
        assert list(places) == list(points)
        np.testing.assert_allclose(list(places.values()), expected, atol=1e-4)  # the transform is in float32


def test_meshes_of_subjects_correspond_to_the_atlas(run_dir: Path, dim: int) -> None:
    mesh(run_dir)
    names = ["part_1", "part_2"]
    for name in names:
        atlas = read_surface(run_dir / "meshes" / "atlas" / f"atlas_{name}.vtp")
        for case, shift in SHIFT.items():
            subject = read_surface(run_dir / "meshes" / case / f"{case}_{name}.vtp")
            np.testing.assert_array_equal(subject.triangles, atlas.triangles)
            assert len(subject.lines) == len(atlas.lines) == (1 if dim == 2 else 0)
            moved = subject.points - atlas.points
            middle = Run.open(run_dir).registration(case)
            expected = middle.to_subject(np.zeros((1, dim)))[0]
            np.testing.assert_allclose(moved[:, :dim], np.broadcast_to(expected, moved[:, :dim].shape), atol=1e-4)
            assert expected[0] == pytest.approx(-(10 + 2 * ((shape_of(dim)[0] - 1) / 2 + shift)), abs=1e-6)
    # A mesh of a subject is taken back to the atlas.
    propagate(run_dir, run_dir / "meshes" / "left" / "left_part_1.vtp", source="left", target="atlas")
    back = read_surface(run_dir / "propagated" / "atlas" / "left_part_1_left_to_atlas.vtp")
    atlas = read_surface(run_dir / "meshes" / "atlas" / "atlas_part_1.vtp")
    np.testing.assert_allclose(back.points, atlas.points, atol=1e-4)


def test_the_surface_lies_round_the_voxels_of_its_label(run_dir: Path, dim: int) -> None:
    mesh(run_dir, cases="left")
    labels = nib.load(run_dir / "left" / "left_seg.nii.gz")
    voxels = np.argwhere(labels.get_fdata() == 20)
    full = np.zeros((len(voxels), 4))
    full[:, : voxels.shape[1]], full[:, 3] = voxels, 1
    centres = (full @ labels.affine.T)[:, :dim] * np.array([-1, -1, 1])[:dim]
    points = read_surface(run_dir / "meshes" / "left" / "left_part_2.vtp").points[:, :dim]
    assert (points.min(axis=0) <= centres.min(axis=0) + 1e-4).all()
    assert (points.max(axis=0) >= centres.max(axis=0) - 1e-4).all()
    np.testing.assert_allclose(points.min(axis=0), centres.min(axis=0), atol=2.0)  # less than a voxel beyond
    np.testing.assert_allclose(points.max(axis=0), centres.max(axis=0), atol=2.0)


@pytest.mark.parametrize("dim", [3], indirect=True)
def test_commands_run_as_users_type_them(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"markups": [{"type": "Fiducial", "controlPoints": [{"id": "1", "position": [0.0, 0.0, 0.0]}]}]}
    (tmp_path / "p.mrk.json").write_text(json.dumps(content))
    command(monkeypatch, "propagate", run_dir, tmp_path / "p.mrk.json", "--to", tmp_path / "moved")
    command(monkeypatch, "mesh", run_dir, "--cases", "left,left", "--file_format", "STL", "--to", tmp_path / "m")
    written = json.loads((tmp_path / "moved" / "left" / "p_atlas_to_left.mrk.json").read_text())
    expected = Run.open(run_dir).registration("left").to_subject(np.zeros((1, 3)))[0]
    np.testing.assert_allclose(written["markups"][0]["controlPoints"][0]["position"], expected, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["atlas", "left"]
    assert (tmp_path / "m" / "left" / "left_part_1.stl").is_file()
    assert not (run_dir / "meshes").exists()
    for arguments in (["--bogus", "3"], ["--help"]):
        with pytest.raises(SystemExit):
            command(monkeypatch, "propagate", run_dir, tmp_path / "p.mrk.json", *arguments)
    assert not (run_dir / "propagated").exists()


@pytest.mark.parametrize("dim", [2], indirect=True)
def test_cases_may_be_named_like_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    names = ["101_02", "1e3", "None"]
    cases = {name: transform(shape_of(dim), shift) for name, shift in zip(names, (1, 2, 3), strict=True)}
    run = write_run(tmp_path / "7", half_ball_network(shape_of(dim)), cases, subject_affine(dim))
    (tmp_path / "5.csv").write_text("x,y\n-30,0\n")
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "propagate", "7", "5.csv", "--target", "1e3,None,atlas", "--source", "101_02", "--to", "6")
    assert sorted(path.name for path in (tmp_path / "6").iterdir()) == ["1e3", "None", "atlas"]
    command(monkeypatch, "mesh", run, "--cases", "1e3")
    assert (run / "meshes" / "1e3").is_dir()


@pytest.mark.parametrize("dim", [3], indirect=True)
def test_a_target_counts_once(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n")
    with caplog.at_level("INFO"):
        propagate(run_dir, tmp_path / "p.csv", target="left,left")
    assert caplog.messages[-1].startswith(f"{tmp_path / 'p.csv'} taken from atlas to 1 space, in ")


DAMAGED = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "flipped": lambda content: bytes(255 - byte if 60 < i < 90 else byte for i, byte in enumerate(content)),
}


@pytest.mark.parametrize("dim", [2], indirect=True)
@pytest.mark.parametrize("damage", DAMAGED)
def test_nothing_is_written_where_a_file_of_the_run_is_damaged(run_dir: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "p.csv").write_text("x,y\n0,0\n")
    labels, to = run_dir / "atlas" / "atlas_labelmap.nii.gz", tmp_path / "to"
    calls = {
        "right/right_registration.npz": [
            lambda: mesh(run_dir, to=to),
            lambda: propagate(run_dir, tmp_path / "p.csv", to=to),
            lambda: motion(run_dir, to=to),
        ],
        "right/right_seg.nii.gz": [lambda: propagate(run_dir, labels, to=to)],
        "atlas/atlas_probabilities.nii.gz": [lambda: mesh(run_dir, to=to), lambda: motion(run_dir, to=to)],
    }
    for name, users in calls.items():
        content = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(DAMAGED[damage](content))
        for call in users:
            with pytest.raises(InputError, match=Path(name).name):
                call()
        (run_dir / name).write_bytes(content)
    (run_dir / "right" / "right_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"right_seg\.\*: no such file.* Run inference again"):
        propagate(run_dir, labels, to=to)
    assert not to.exists()


@pytest.mark.parametrize("dim", [2], indirect=True)
def test_a_damaged_transform_is_refused_in_silence(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "left" / "left_atlas_to_subject.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"left_atlas_to_subject\.h5: the transform cannot be read"):
        read_atlas_to_subject(run_dir / "left")
    assert capfd.readouterr().err == ""


def test_images_that_lie_elsewhere_are_refused(run_dir: Path, tmp_path: Path, dim: int) -> None:
    # One voxel that touches the corner of the region, or does not; the grid of a subject starts at (10, -20, 5).
    for gap, inside in ((-0.1, True), (0.1, False)):
        affine = np.diag([0.5] * dim + [1.0])
        affine[:dim, dim] = np.array((10.0, -20.0, 5.0)[:dim]) - 1 - 0.25 - gap
        write_image(np.ones((1,) * dim, dtype=np.float32), affine, tmp_path / "dot.nii.gz")
        if inside:
            propagate(run_dir, tmp_path / "dot.nii.gz", source="left", target="atlas")
        else:
            with pytest.raises(InputError, match=r"dot\.nii\.gz: the image lies outside of the region of 'left'"):
                propagate(run_dir, tmp_path / "dot.nii.gz", source="left", target="atlas")


@pytest.mark.parametrize("dim", [2], indirect=True)
def test_mistakes_are_named(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n0,0\n500,0\n")
    labels = run_dir / "atlas" / "atlas_labelmap.nii.gz"
    mistakes = [
        (lambda: propagate(tmp_path, labels), "no results of inference"),
        (lambda: propagate(run_dir, labels, source="gone"), "expected names of its 2 cases .*found 'gone'"),
        (lambda: propagate(run_dir, labels, target="left,gone"), "found 'gone'"),
        (lambda: propagate(run_dir, labels, source="left", target="left"), "both 'left'"),
        (lambda: propagate(run_dir, labels, target="atlas"), "both 'atlas'"),
        (lambda: propagate(run_dir, labels, source="left,right"), "name of one case, found 2"),
        (lambda: propagate(run_dir, labels, source="all"), "name of one case, found 2"),
        (lambda: propagate(run_dir, tmp_path / "a.obj"), "unknown format"),
        (lambda: propagate(run_dir, tmp_path / "gone.nii.gz"), "no such file"),
        (lambda: propagate(run_dir, tmp_path / "p.csv"), r"1 of 2 points lie outside .*\[500.0, 0.0, 0.0\]"),
        (lambda: mesh(run_dir, file_format="obj"), "expected vtp, ply or stl"),
        (lambda: mesh(run_dir, file_format="stl"), "file_format: expected vtp"),
    ]
    for call, message in mistakes:
        with pytest.raises(InputError, match=message):
            call()


def test_labels_of_32_bits_land_on_the_grid_of_the_target(run_dir: Path, tmp_path: Path, dim: int) -> None:
    """The header of the target's own results, here with a unit and codes that we would not write, is taken over."""
    scan = run_dir / "right" / "right_seg.nii.gz"
    image = nib.load(scan)
    image.header["sform_code"], image.header["descrip"] = 3, b"not copied"
    nib.save(image, scan)
    shape, values = shape_of(dim), [0, 614454277, 614454278]
    classes = np.zeros(shape, int)
    classes[8:14, 8:12], classes[14:16, 8:12] = 1, 2
    write_labelmap(classes, subject_affine(dim), values, tmp_path / "labels.nii.gz")
    propagate(run_dir, tmp_path / "labels.nii.gz", source="left", target="right", to=tmp_path / "to")
    moved = nib.load(tmp_path / "to" / "right" / "labels_left_to_right.nii.gz")
    shift = int(SHIFT["right"] - SHIFT["left"])
    np.testing.assert_array_equal(moved.dataobj, np.roll(np.array(values)[classes], shift, axis=0))
    assert (int(moved.header["sform_code"]), bytes(moved.header["descrip"].item())) == (3, b"")
