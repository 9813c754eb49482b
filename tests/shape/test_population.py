# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Modes, volumes and groups of cohorts that are made from known modes."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import false_discovery_control, ttest_ind

from atlas_istn.errors import InputError
from atlas_istn.shape.groups import compare_groups, read_groups
from atlas_istn.shape.modes import ShapeModes, shape_modes
from atlas_istn.shape.pictures import Panel, _Section, draw_curves, draw_groups, draw_modes
from atlas_istn.shape.population import population
from atlas_istn.shape.surfaces import read_surface
from atlas_istn.spatial import Transform, compose_affine, decompose_affine, num_affine_parameters
from shape_runs import command, half_ball_network, soft_ball, write_run

SmoothField = Callable[..., torch.Tensor]


def shape_of(dim: int) -> tuple[int, ...]:
    return (24, 20, 16)[:dim]


def orthogonal_scores(cases: int) -> torch.Tensor:
    """Scores [cases, 2] of mean zero, standard deviation one, without correlation."""
    scores = torch.randn(cases, 2, generator=torch.Generator().manual_seed(3)).double()
    q, _ = torch.linalg.qr(scores - scores.mean(dim=0))
    return q * (cases - 1) ** 0.5


def cohort(smooth_field: SmoothField, dim: int, cases: int = 8) -> tuple[Transform, torch.Tensor, torch.Tensor]:
    """Transforms made of two smooth velocity fields, with their scores; poses differ at random."""
    shape = shape_of(dim)
    half = tuple(n // 2 for n in shape)
    modes = smooth_field(half, amplitude=1.0, sigma=2.0, seed=5, batch=2)
    modes[1] *= 0.4
    scores = orthogonal_scores(cases)
    parameters = torch.zeros(cases, num_affine_parameters(dim), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    parameters[:, :-dim] = 0.2 * torch.randn(cases, len(parameters[0]) - dim, generator=generator)
    velocity = torch.einsum("nk,k...->n...", scores, modes)
    return Transform(velocity, compose_affine(parameters), shape, (2.0,) * dim), modes, scores


def pca(transforms: Transform, dim: int, count: int = 4, size: bool = True) -> ShapeModes:
    return shape_modes(transforms, 1 - soft_ball(shape_of(dim))[0, 0], count, size)


def test_the_modes_of_the_cohort_are_found(smooth_field: SmoothField, dim: int) -> None:
    transforms, _, scores = cohort(smooth_field, dim)
    found = pca(transforms, dim)
    # Two modes made the cohort, and two explain it, of the four asked for. Without their rigid parts they need not be
    # orthogonal, so that the scores found are a rotation of those drawn.
    assert len(found.deviations) == 2
    assert found.explained.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.scores.std(axis=0, ddof=1), 1, rtol=1e-6)
    mixed, residual, _, _ = np.linalg.lstsq(found.scores, scores.numpy(), rcond=None)
    assert residual.max() < 1e-12
    np.testing.assert_allclose(mixed.T @ mixed, np.eye(2), atol=1e-9)


def test_direction_and_variance_of_a_single_mode_of_size(dim: int) -> None:
    # Log-scales 0.1 · score along every axis: mean square displacement (0.1 r)² over the anatomy.
    scores = orthogonal_scores(6)[:, 0]
    parameters = torch.zeros(6, num_affine_parameters(dim), dtype=torch.float64)
    parameters[:, -dim:] = 0.05 + 0.1 * scores[:, None]
    shape = shape_of(dim)
    still = torch.zeros(6, dim, *[n // 2 for n in shape])
    transforms = Transform(still, compose_affine(parameters), shape, (2.0,) * dim)
    found = pca(transforms, dim)
    foreground = 1 - soft_ball(shape)[0, 0]
    axes = [2 * (torch.arange(n) - (n - 1) / 2) for n in shape]
    radius = torch.stack(torch.meshgrid(axes, indexing="ij")).square().sum(dim=0)
    expected = 0.1 * float((radius * foreground).sum() / foreground.sum()) ** 0.5
    # The integral is taken on the velocity's grid, of half as many points.
    assert found.deviations[0] == pytest.approx(expected, rel=0.05)
    assert found.explained[0] == pytest.approx(1)
    np.testing.assert_allclose(np.abs(found.log_scales[0]), 0.1, rtol=1e-6)
    grown = decompose_affine(found.shape(0, 2.0 * float(np.sign(found.log_scales[0, 0]))).affine)
    np.testing.assert_allclose(grown[0, -dim:], 0.05 + 0.2, rtol=1e-6)
    assert len(pca(transforms, dim, size=False).deviations) == 0


def test_pose_is_no_shape(smooth_field: SmoothField, dim: int) -> None:
    transforms, _, _ = cohort(smooth_field, dim)
    expected = pca(transforms, dim)
    half = transforms.velocity.shape[2:]
    places = torch.stack(torch.meshgrid([torch.arange(n).double() for n in half], indexing="ij"))
    steps = [2 * (n - 1) / (m - 1) for n, m in zip(transforms.shape, half, strict=True)]
    rigid = torch.zeros(len(transforms), *transforms.velocity.shape[1:], dtype=torch.float64)
    amounts = torch.randn(len(transforms), 2, generator=torch.Generator().manual_seed(2)).double()
    shift, turn = (a.reshape(-1, *[1] * dim) for a in amounts.T)
    rigid[:, 0] = shift + 0.1 * turn * places[1] * steps[1] / steps[0]
    rigid[:, 1] = -0.1 * turn * places[0] * steps[0] / steps[1]
    found = pca(replace(transforms, field=transforms.velocity + rigid), dim)
    np.testing.assert_allclose(found.deviations[:2], expected.deviations[:2], rtol=1e-9)


def write_cohort(folder: Path, transforms: Transform, suffix: str = ".nii.gz") -> tuple[Path, list[str]]:
    names = [f"case_{i}" for i in range(len(transforms))]
    parts = {name: transforms[i] for i, name in enumerate(names)}
    single = {n: replace(t, field=t.velocity.float(), affine=t.affine.float()) for n, t in parts.items()}
    network = half_ball_network(transforms.shape)
    affine = np.diag([2.0, 2.0, 2.0 if len(transforms.shape) == 3 else 1.0, 1.0])
    return write_run(folder, network, single, affine, suffix), names


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_command_describes_a_cohort_with_two_groups(
    tmp_path: Path, smooth_field: SmoothField, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    # Cases 0 to 3 are 20 % longer along each axis than 4 to 7.
    transforms, _, _ = cohort(smooth_field, dim)
    parameters = decompose_affine(transforms.affine)
    parameters[:, :-dim] = 0
    parameters[:4, -dim:] = 0.2
    transforms = replace(transforms, affine=compose_affine(parameters), field=0.15 * transforms.velocity)
    run, names = write_cohort(tmp_path / "out", transforms)
    lines = [f"{name},{'large' if i < 4 else 'small'}" for i, name in enumerate(names)]
    (tmp_path / "groups.csv").write_text("\n".join(["case,group", *lines]) + "\n")
    command(monkeypatch, "population", run, "--groups", tmp_path / "groups.csv", "--modes", "2")
    folder = run / "population"

    volumes = rows_of(folder / "volumes.csv")
    seg = nib.load(run / "case_0" / "case_0_seg.nii.gz").get_fdata()
    assert float(volumes[0]["part_1"]) == (seg == 10).sum() * 2**dim
    modes = rows_of(folder / "modes.csv")
    assert [row["mode"] for row in modes] == ["1", "2"]
    assert "deviation_mm" in modes[0]
    assert 0.9 < float(modes[-1]["cumulative"]) <= 1
    assert float(modes[0]["explained_variance"]) > float(modes[1]["explained_variance"])

    mean = read_surface(folder / "mean" / "mean_part_1.vtp")
    plus, minus = (read_surface(folder / "modes" / f"mode_1_{sign}_part_1.vtp") for sign in ("plus", "minus"))
    assert len(mean.points) == len(plus.points) == len(minus.points)
    assert np.linalg.norm(plus.points - minus.points, axis=1).max() > 1
    assert nib.load(folder / "mean" / "mean_labelmap.nii.gz").shape[:dim] == transforms.shape
    velocity = sitk.ReadImage(str(folder / "modes" / "mode_1_velocity.nii.gz"))
    assert velocity.GetSize()[:dim] == tuple(n // 2 for n in transforms.shape)

    large = nib.load(folder / "jacobian" / "case_0_log_jacobian.nii.gz").get_fdata()
    inner = tuple(slice(n // 3, 2 * n // 3) for n in transforms.shape)
    # Velocities of a fifth of a voxel change local volume by some per cent.
    assert large[inner].mean() == pytest.approx(0.2 * dim, abs=0.1)

    table = {row["measure"]: row for row in rows_of(folder / "groups.csv")}
    assert list(table) == ["part_1", "part_2", "mode 1", "mode 2"]
    assert float(table["part_1"]["difference (small - large)"]) < 0
    assert float(table["part_1"]["p_fdr"]) < 0.05
    p = nib.load(folder / "groups_p_fdr.nii.gz").get_fdata()
    difference = nib.load(folder / "groups_difference.nii.gz").get_fdata()
    anatomy = p < 1
    assert (p[anatomy] < 0.05).mean() > 0.9
    assert difference[anatomy].mean() == pytest.approx(-0.2 * dim, abs=0.05)
    for name in ("modes.png", "groups.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100


def test_lengths_of_pictures_without_a_pixel_size_are_in_pixels(tmp_path: Path, smooth_field: SmoothField) -> None:
    transforms, _, _ = cohort(smooth_field, 2, cases=3)
    run, _ = write_cohort(tmp_path, transforms, ".png")
    population(run, modes=1)
    assert "deviation_pixels" in rows_of(tmp_path / "population" / "modes.csv")[0]


def words(path: Path, draw: Callable[[Path], None]) -> list[str]:
    """The texts of a picture."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(path)
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))]


def test_the_picture_of_modes_names_labels_units_sides_and_slice(
    tmp_path: Path, smooth_field: SmoothField, dim: int
) -> None:
    modes = pca(cohort(smooth_field, dim)[0], dim, count=2)
    atlas = soft_ball(shape_of(dim))[0].double()
    found = words(tmp_path / "modes.svg", lambda path: draw_modes(modes, atlas, ["left", "right"], "mm", path))
    assert [text for text in found if text.endswith("SD")] == ["−2 SD", "−1 SD", "+1 SD", "+2 SD"]  # above one row only
    assert found.count("mean") == 2  # above its column, and in the legend
    assert {"left", "right"} <= set(found)
    for deviation in modes.deviations:
        assert f"SD {deviation:.2f} mm" in found
    # The ball of 24 x 20 x 16 voxels is shortest along the last axis: so it is seen from below.
    shown = {text for text in found if text in (*"RLAPSI", "axial slice 8 of 16 of the atlas")}
    assert shown == ({*"RLAP", "axial slice 8 of 16 of the atlas"} if dim == 3 else set())


def test_the_scale_bar_has_the_length_that_it_says(tmp_path: Path) -> None:
    cut = _Section(np.ones((30, 20)), (2.0, 3.0))
    cut.frame([np.zeros((1, 20, 30))])
    axes = Figure().subplots()
    cut.prepare(axes)
    cut.mark_scale(axes, "mm")
    ends = axes.transData.inverted().transform(axes.lines[0].get_transform().transform(axes.lines[0].get_xydata()))
    assert axes.texts[0].get_text() == f"{2 * np.ptp(ends[:, 0]):g} mm" == "20 mm"


def test_the_picture_of_groups_says_what_is_shown(tmp_path: Path, dim: int) -> None:
    atlas = soft_ball(shape_of(dim))[0]
    p = np.ones(shape_of(dim))
    for significant in (False, True):
        p[10:14, 8:12] = 0.01 if significant else 0.9
        found = words(
            tmp_path / "groups.svg",
            lambda path: draw_groups(1 - p, p, atlas, (2.0,) * dim, ("ill", "well"), "pixels", path),
        )
        assert any(text.startswith("difference in log local") and text.endswith("well − ill") for text in found)
        assert ("p < 0.05 after FDR control" in found) == significant
        assert ("nowhere p < 0.05 in this plane after FDR control" in found) != significant
        assert any(re.fullmatch(r"\d+ pixels", text) for text in found)


def test_curves_over_frames_name_the_frames(tmp_path: Path) -> None:
    panels = [Panel("strain", 0.0, {"wall": [0.0, 0.1, 0.2]})]
    found = words(tmp_path / "motion.svg", lambda path: draw_curves(panels, ["rest", "mid", "end"], path))
    assert [text for text in found if text in ("rest", "mid", "end")] == ["rest", "mid", "end"]
    assert {"strain", "wall", "frame"} <= set(found)


def test_groups_are_compared_as_scipy_does_and_noise_is_not_significant() -> None:
    values = np.random.default_rng(0).normal(size=(20, 300))
    values[:10, :30] += 3.0
    values[:, -1] = 7.0  # a measure that does not vary says nothing
    found = compare_groups(values, {"a": list(range(10)), "b": list(range(10, 20))})
    expected = ttest_ind(values[10:, :-1], values[:10, :-1], equal_var=False).pvalue
    np.testing.assert_allclose(found.p[:-1], expected)
    assert found.p[-1] == 1
    np.testing.assert_allclose(found.adjusted, false_discovery_control(found.p))
    assert (found.adjusted[:30] < 0.05).mean() > 0.9
    assert (found.adjusted[30:] < 0.05).mean() < 0.05
    np.testing.assert_allclose(found.difference[:30].mean(), -3, atol=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,class\na,1\n", "columns case and group"),
        ("case,group\na,1\nb,1\nc,2\n", "a group for each case, found 1 case without one, the first 'd'"),
        ("case,group\na,1\nb,1\nc,2\nd,3\n", r"expected two groups of at least two cases, found '1' \(2\), '2' \(1\)"),
        ("case,group\na,1\nb,1\nc,1\nd,2\n", "at least two cases"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(tmp_path / "groups.csv", ["a", "b", "c", "d"])


def test_cases_that_were_not_analysed_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("case,group\nx,9\na,1\nb,2\nc,1\nd,2\n")
    assert read_groups(tmp_path / "groups.csv", ["a", "b", "c", "d"]) == {"1": [0, 2], "2": [1, 3]}
    with pytest.raises(InputError, match=r"gone\.csv"):
        read_groups(tmp_path / "gone.csv", ["a"])


def test_mistakes_are_named(tmp_path: Path, smooth_field: SmoothField) -> None:
    transforms, _, _ = cohort(smooth_field, 2, cases=3)
    run, _ = write_cohort(tmp_path / "out", transforms)
    with pytest.raises(InputError, match="needs at least 3 cases, found 2"):
        population(run, cases="case_0,case_1")
    with pytest.raises(InputError, match="modes: expected a positive number, found 0"):
        population(run, modes=0)
    with pytest.raises(InputError, match="each case once, found 'case_1' again"):
        population(run, cases="case_0,case_1,case_1,case_2")
    with pytest.raises(InputError, match="found 'case_9'"):
        population(run, cases="case_9")
    run, _ = write_cohort(tmp_path / "same", replace(transforms, field=0 * transforms.velocity))
    with pytest.raises(InputError, match="all 3 cases have the same shape"):
        population(run)
    assert not (run / "population").exists()
