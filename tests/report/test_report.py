# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The report of a synthetic run: what is drawn where, that nothing is loaded from elsewhere, and how it looks."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.evaluation.metrics import score_labelmap
from atlas_istn.evaluation.scores import Evaluation
from atlas_istn.io.outputs import (
    atlas_grid_affine,
    write_csv,
    write_image,
    write_json,
    write_labelmap,
    write_probability,
    write_transforms,
)
from atlas_istn.io.results import find_case_folders
from atlas_istn.pictures.palette import ALERT, RESULT_COLOURS, atlas_colour
from atlas_istn.pictures.planes import choose_planes
from atlas_istn.report import write_report
from atlas_istn.report.charts import CURVE, WIDTH, box_plot, curve
from atlas_istn.report.drawing import (
    VOLUME_COLOURS,
    difference,
    gradient,
    local_volume,
    outlines,
)
from atlas_istn.report.units import Units
from atlas_istn.report.write import MARGIN
from atlas_istn.spatial import Transform, affine_matrix
from atlas_istn.topology import labelmap_topology

SHAPES = {2: (40, 30), 3: (20, 24, 16)}
CASES = {"fine": "ok", "odd": "review", "broken": "fail"}
PREDICTED = {
    "fine": {"1": {"dice": 0.91, "low": 0.87, "high": 0.94}, "2": {"dice": 0.85, "low": 0.79, "high": 0.89}},
    "odd": {"2": {"dice": 0.62, "low": 0.41, "high": 0.77}},
    "broken": "not calibrated (n = 8)",
}
"""Of the case "odd" one label is not predicted."""


def labels_of(dim: int, cut: bool = False) -> np.ndarray:
    """Two boxes side by side; the first is in two pieces if asked for."""
    labels = np.zeros(SHAPES[dim], dtype=int)
    labels[6:12, 8:20, ...] = 1
    labels[12:15, 8:20, ...] = 2
    if dim == 3:
        labels[..., :4] = labels[..., 12:] = 0
    if cut:
        labels[6:12, 12:14] = 0
    return labels


def write_run(root: Path, dim: int, scored: bool = True) -> tuple[Path, Path]:
    """A data set and what inference wrote; of the case "broken" the label 1 is in two pieces."""
    dataset, output = root / "Secret_Name" / "data", root / "out"
    dataset.mkdir(parents=True)
    shape, suffix = SHAPES[dim], ".png" if dim == 2 else ".nii.gz"
    affine = atlas_grid_affine(shape, (1.0,) * dim)
    grid = np.diag([-1.0, -1.0, 1.0, 1.0]) if dim == 2 else affine
    random, evaluation, entries = np.random.default_rng(0), Evaluation(), []
    for name, flag in CASES.items():
        truth, refined = labels_of(dim), labels_of(dim, cut=name == "broken")
        image = (80 * truth + random.integers(0, 60, shape)).astype(np.uint8)
        if dim == 2:
            Image.fromarray(image.T).save(dataset / f"{name}.png")
        else:
            write_image(image.astype(np.int16), affine, dataset / f"{name}.nii.gz")
        write_labelmap(truth, grid, range(3), dataset / f"{name}_truth{suffix}")
        entries.append({"image": f"{name}{suffix}", "label": f"{name}_truth{suffix}"})
        for ending, labels in (("itn", np.roll(refined, 1, 0)), ("one_pass", truth), ("seg", refined)):
            write_labelmap(labels, grid, range(3), output / name / f"{name}_{ending}{suffix}")
        velocity = torch.zeros(1, dim, *[n // 2 for n in shape])
        matrix = affine_matrix(torch.zeros(1, 5 if dim == 2 else 9), torch.ones(5 if dim == 2 else 9))
        transform = Transform(velocity, matrix, shape, (1.0,) * dim)
        write_transforms(transform, grid, lambda way, name=name: output / name / f"{name}_{way}.h5")
        topology = {str(k): t._asdict() for k, t in labelmap_topology(refined, [1, 2]).items()}
        report = {"case": name, "loss_before": 0.2, "loss_after": 0.1, "iterations": 2, "seconds": 0.1}
        report |= {"min_jacobian": 0.9, "folded_fraction": 0.0, "topology": topology, "warnings": []}
        report |= {"quality": flag, "quality_score": 1.0, "quality_reasons": [f"is {flag}"] if flag != "ok" else []}
        report |= {"labels": {"1": 1, "2": 2}, "loss_curve": [0.2, 0.15, 0.1], "predicted_dice": PREDICTED[name]}
        write_json(report, output / name / f"{name}.json")
        for result in ("itn", "one_pass", "refine"):
            evaluation.add(name, result, score_labelmap(refined, truth, {1: "1", 2: "2"}, (1.0,) * dim))
    (dataset / "dataset.json").write_text(json.dumps({"test": entries}))
    atlas = labels_of(dim)
    write_image(atlas.astype(np.float32), affine, output / "atlas" / "atlas_image.nii.gz")
    write_labelmap(atlas, affine, range(3), output / "atlas" / "atlas_labelmap.nii.gz")
    write_csv([{"case": "lost", "error": "/home/Secret_Name: unreadable"}], output / "summary.csv")
    if scored:
        evaluation.write(output)
    return dataset, output


class Page(HTMLParser):
    """What a page links to, its identifiers and its text; complains about tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("href", "src")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def pixels(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def colour(text: str) -> list[int]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)] + [255]


def corners(path: str) -> list[float]:
    """Least and greatest x and y of an SVG path."""
    points = np.array([[float(v) for v in pair.split(",")] for pair in re.findall(r"[-\d.e]+,[-\d.e]+", path)])
    return [*points.min(axis=0), *points.max(axis=0)]


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    dataset, output = write_run(tmp_path_factory.mktemp("run"), request.param)
    write_report(output, dataset)
    return dataset, output


def test_the_page_is_complete_and_alone(run: tuple[Path, Path]) -> None:
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith("data:image/webp;base64,") or link == "#" or link.removeprefix("#") in page.ids, link
    assert not re.search(r"@import|url\(|https?://", html)
    assert "Secret" not in html
    assert str(run[0]) not in html


def test_conspicuous_cases_come_first_and_failed_ones_are_named(run: tuple[Path, Path]) -> None:
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section class="case" id="case-(\w+)"', html) == ["broken", "odd", "fine"]
    assert "lost" in html
    assert re.search(r"<b>2 / 3</b>with the atlas", html)
    assert "1: 2 components; atlas: 1 component" in html
    # Label 1 lost 2 of its 12 rows: 2·10 / (10 + 12); label 2 is whole.
    assert f"{(20 / 22 + 1) / 2:.3f}" in html


def test_the_predicted_dice_stands_on_the_first_page_and_on_that_of_the_case(run: tuple[Path, Path]) -> None:
    html = (run[1] / "report.html").read_text()
    first, *cases = html.split('<section class="case"')
    rows = re.findall(r'<a href="#case-(\w+)">\w+</a></td>.*?</tr>', first, re.DOTALL)
    assert sorted(rows) == sorted(CASES)
    shown = {name: _text(first.split(f'<a href="#case-{name}">{name}</a>')[1].split("</tr>")[0]) for name in rows}
    assert "0.85 (0.79–0.89) 2" in shown["fine"]  # the label whose interval reaches lowest
    assert "0.62 (0.41–0.77) 2" in shown["odd"]
    assert "not calibrated" not in shown["broken"]
    assert "<b>Predicted Dice</b>" in first
    pages = {case.split('id="case-')[1].split('"')[0]: _text(case) for case in cases}
    assert "0.91 (0.87–0.94)" in pages["fine"]
    assert "0.85 (0.79–0.89)" in pages["fine"]
    assert "0.62 (0.41–0.77)" in pages["odd"]
    assert "Predicted Dice: not calibrated (n = 8)." in pages["broken"]


def _text(html: str) -> str:
    return " ".join(re.sub("<.*?>", " ", html).split())


def test_uncertainty_is_shown_where_there_is_a_map(tmp_path: Path) -> None:
    dataset, output = write_run(tmp_path, 2)
    entropy = labels_of(2) / 2
    write_image(entropy, np.diag([-1.0, -1.0, 1.0, 1.0]), output / "odd" / "odd_uncertainty.nii.gz")
    write_report(output, dataset)
    pages = (output / "report.html").read_text(encoding="utf-8").split("<section")
    shown = {re.findall(r'id="case-(\w+)"', page)[0]: page for page in pages[1:] if "uncertainty" in page}
    assert list(shown) == ["odd"]
    assert "uncertainty: 0" in shown["odd"]
    picture = pixels(re.findall(r'href="(data[^"]+)"', shown["odd"])[-1])[..., :3].astype(int).sum(axis=-1)
    # Brightest in the middle of the label with an entropy of 1, black in the corner.
    (plane,) = choose_planes(labels_of(2) + np.roll(labels_of(2), 1, 0), (1.0, 1.0), MARGIN)
    inside = plane.cut(labels_of(2)) == 2
    assert picture[inside].mean() > 600
    assert picture[0, 0] < 60


def test_without_data_set_and_scores_there_are_outlines_alone(tmp_path: Path) -> None:
    _, output = write_run(tmp_path, 2, scored=False)
    write_report(output, path=tmp_path / "bare.html")
    html = (tmp_path / "bare.html").read_text(encoding="utf-8")
    Page(html)
    assert "Dice<br>" not in html
    assert 'class="c-truth"' not in html
    assert html.count('class="c-refine"') == 3


def test_a_run_without_calibration_is_not_rated(tmp_path: Path) -> None:
    dataset, output = write_run(tmp_path, 2)
    for path in output.glob("*/*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "quality" in report:
            path.write_text(json.dumps(report | {"quality": "not calibrated (n = 2)"}), encoding="utf-8")
    write_report(output, dataset)
    html = (output / "report.html").read_text(encoding="utf-8")
    assert '<span class="flag unrated">not calibrated (n = 2)</span>' in html
    assert "not rated" in html


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run inference first"):
        write_report(tmp_path)
    dataset, output = write_run(tmp_path, 2)
    Image.fromarray(np.arange(25, dtype=np.uint8).reshape(5, 5)).save(dataset / "odd.png")
    with pytest.raises(InputError, match="Pass the dataset_dir that was run"):
        write_report(output, dataset)
    (output / "fine" / "fine.json").write_text("{}")
    with pytest.raises(InputError, match=r"fine\.json.*Run inference again"):
        write_report(output)


def test_results_in_dicom_beside_the_label_maps_change_nothing(tmp_path: Path) -> None:
    _, output = write_run(tmp_path, 3)
    pages = []
    for _ in range(2):
        write_report(output)
        pages.append((output / "report.html").read_text())
        for folder in find_case_folders(output):
            (folder / f"{folder.name}_seg.dcm").write_bytes(b"DICOM")
    assert pages[0] == pages[1]


def test_images_are_found_in_whatever_list_has_the_cases(tmp_path: Path) -> None:
    dataset, output = write_run(tmp_path, 2)
    content = json.loads((dataset / "dataset.json").read_text())
    lists = {"training": [{"image": "gone.png"}], "odd ones": content["test"]}
    (dataset / "dataset.json").write_text(json.dumps({"name": "x", **lists}))
    write_report(output, dataset)
    assert (output / "report.html").read_text(encoding="utf-8").count('class="c-truth"') == 3
    lists["other"] = [{"image": "fine_truth.png", "label": "fine_truth.png"}]
    (dataset / "dataset.json").write_text(json.dumps(lists))
    with pytest.raises(InputError, match=r"none of them in the list 'other'; these lists have them: 'odd ones' \(3\)"):
        write_report(output, dataset, "other")
    (dataset / "copy").mkdir()
    shutil.copy(dataset / "fine.png", dataset / "copy")
    lists["copies"] = [{"image": "copy/fine.png"}]
    (dataset / "dataset.json").write_text(json.dumps(lists))
    with pytest.raises(InputError, match="lists 'odd ones' and 'copies' have different images of fine"):
        write_report(output, dataset)
    write_report(output, dataset, "odd ones")


def test_images_are_found_in_the_folders_that_a_plan_takes(tmp_path: Path) -> None:
    dataset, output = write_run(tmp_path, 2)
    folders = tmp_path / "own" / "imagesTr", tmp_path / "own" / "labelsTr"
    for folder, name in zip(folders, ("fine.png", "fine_truth.png"), strict=True):
        folder.mkdir(parents=True)
        shutil.copy(dataset / name, folder / "fine.png")
    write_report(output, tmp_path / "own")
    assert (output / "report.html").read_text(encoding="utf-8").count('class="c-truth"') == 1


def test_a_data_set_without_the_cases_is_refused_and_missing_images_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output = write_run(tmp_path, 2)
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(dataset / "fine.png", others / "nobody.png")
    with pytest.raises(InputError, match=r"images of the run's 3 cases .* none of them\. Pass the dataset_dir"):
        write_report(output, others)
    shutil.copy(dataset / "fine.png", others)
    write_report(output, others)
    assert "3 cases (2 without an image in" in capsys.readouterr().out


def test_sizes_have_the_units_that_are_known(run: tuple[Path, Path]) -> None:
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    flat = (run[1] / "fine" / "fine_seg.png").is_file()
    assert ("Area [pixels]" in html) == ("95 % Hausdorff distance [pixels]" in html) == ("HD [pixels]" in html) == flat
    assert ("Volume [ml]" in html) == ("HD [mm]" in html) != flat
    assert Units.of(2, "mm") == Units("area", "cm²", "mm", 0.01, 2)
    if flat:
        assert "<td>72</td>" in html  # pixels of the first label


def test_what_is_empty_takes_no_column_and_scores_have_two_digits(tmp_path: Path) -> None:
    dataset, output = write_run(tmp_path, 2)
    write_report(output, dataset)
    assert ">Findings<" in (output / "report.html").read_text(encoding="utf-8")
    for name, score in zip(CASES, (0.0123, 0.0201, 12.3), strict=True):
        path = output / name / f"{name}.json"
        report = json.loads(path.read_text()) | {"quality_score": score, "quality_reasons": []}
        report["topology"] = {"1": {"components": 1, "holes": 0, "cavities": 0}} | {"2": report["topology"]["2"]}
        path.write_text(json.dumps(report))
    write_report(output, dataset)
    html = (output / "report.html").read_text(encoding="utf-8")
    assert ">Findings<" not in html
    for text in ("0.012", "0.020", "12"):
        assert f"<td>{text}</td>" in html


def test_the_thumbnail_shows_the_anatomy_where_it_is_largest(run: tuple[Path, Path]) -> None:
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    table = html[html.index("<h2>Cases") : html.index("<section")]
    # Labels of 9 x 12 (x 8) voxels of 1 mm, and the ITN's one more: the axial plane, with a margin of 12 % of 12.
    shown = re.findall(r'viewBox="([^"]+)"', table)
    assert len(shown) == 3
    for box in shown:
        assert [float(v) for v in box.split()[2:]] == pytest.approx([10 + 2 * 1.44, 12 + 2 * 1.44], abs=0.01)
    assert set(re.findall(r"#case-\w+-(\d)-outline", table)) == {"0"}


def test_outlines_are_in_millimetres() -> None:
    (plane,) = choose_planes(labels_of(2), (2.0, 3.0))
    # Rows 8 to 20 and columns 6 to 15 of voxel edges; the contour at half height cuts corners, not edges.
    assert corners(outlines(plane.cut(labels_of(2)), plane)) == pytest.approx([12.0, 24.0, 30.0, 60.0])


def test_colours_of_differences_and_volumes() -> None:
    itn, refined = np.array([[0, 1, 0, 1, 1]]), np.array([[0, 0, 1, 2, 1]])
    shown = pixels(difference(itn, refined, ("#ff0000", "#00ff00")))[0]
    assert shown[[1, 2, 3]].tolist() == [colour("#ff0000"), colour("#00ff00"), colour(ALERT)]
    assert shown[[0, 4], 3].tolist() == [0, 0]
    for determinant, test in (
        (1.0, lambda red, green, blue: min(red, green, blue) > 230),
        (0.3, lambda red, green, blue: red > blue + 50),  # the subject is larger than the atlas
        (3.0, lambda red, green, blue: blue > red + 50),
        (-1.0, lambda red, green, blue: max(red, green, blue) < 20),
    ):
        # A picture of one colour: WebP keeps it but for rounding.
        assert test(*pixels(local_volume(np.full((16, 16), determinant)))[8, 8, :3].astype(int)), determinant
    # The legend: from the colour of a quarter to that of four times.
    ends = re.findall(r"#\w{6}", gradient(VOLUME_COLOURS))
    for end, determinant in ((ends[0], 4.0), (ends[-1], 0.25)):
        shown = pixels(local_volume(np.full((16, 16), determinant)))[8, 8]
        np.testing.assert_allclose(shown.astype(int), colour(end), atol=4)


def test_box_plots_and_curves_are_laid_out_to_scale() -> None:
    plot = box_plot("x", {"a": {str(i): float(i) for i in range(101)}, "none": {"0": float("nan")}})
    assert plot is not None
    (row,) = plot.rows
    assert row.box[2] == pytest.approx(WIDTH / 2, abs=0.1)
    quarter = (row.box[3] - row.box[1]) / (row.points[100][1] - row.points[0][1])
    assert quarter == pytest.approx(0.5, abs=0.01)
    assert all(0 <= y <= plot.height for _, _, y, _ in row.points)
    assert box_plot("x", {"a": {"0": 1.0, "1": 1.0}}) is None
    assert [text for _, text in plot.ticks] == ["0", "20", "40", "60", "80", "100"]
    line = curve([4.0, 2.0, 3.0])
    assert (line.first, line.last) == ("4", "2")
    start, least, end = (tuple(map(float, point.split(","))) for point in line.path.split())
    assert (start[0], end[0]) == (0, CURVE[0])
    assert least[1] - end[1] == pytest.approx(end[1] - start[1])
    assert line.iterations == [(0.0, "0"), (least[0], "1"), (end[0], "2")]
    assert {(start[1], "4"), (end[1], "3"), (least[1], "2")} <= set(line.values)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_cohort_and_case(run: tuple[Path, Path], tmp_path: Path) -> None:
    page = (run[1] / "report.html").resolve().as_uri()
    shown = {}
    for name in ("", "#case-broken"):
        picture = tmp_path / f"shot{name[1:]}.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"]
        folder = f"--user-data-dir={tmp_path / 'profile'}"
        subprocess.run([*command, folder, f"--screenshot={picture}", page + name], check=True, timeout=300)
        shown[name] = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (shown[""] != shown["#case-broken"]).any(axis=-1).mean() > 0.1
    # The outline of the refined labels, in its colour, is drawn on the page of the case; lines are smoothed.
    near = np.abs(shown["#case-broken"] - colour(RESULT_COLOURS["refine"])[:3]).max(axis=-1) < 40
    assert near.sum() > 300


@pytest.mark.parametrize("full", ["itn", "one_pass"])
def test_a_run_without_refinement_shows_what_there_is(tmp_path: Path, full: str) -> None:
    """A U-net has one result, no transform and no atlas; VML has an atlas, a transform and no objective."""
    dataset, output = write_run(tmp_path, 3, scored=False)
    drop_results(output, full)
    write_report(output, dataset)
    html = (output / "report.html").read_text(encoding="utf-8")
    Page(html)
    pages = html[html.index("<section") : html.index("<script")]
    assert (f'class="c-{full}"' in pages, 'class="c-refine"' in pages) == (True, False)
    registered = full == "one_pass"
    assert ("grid of the atlas" in pages) == ("Smallest<br>" in html) == ("no folds" in html) == registered
    assert ("with the atlas's topology" in html) == registered
    assert "Refinement" not in pages
    assert "Objective" not in html
    assert " against " not in pages.replace("against the atlas", "")


def drop_results(output: Path, full: str) -> None:
    """Make a run with one result of a full run: only what refines, or registers, is missing."""
    for name in CASES:
        folder = output / name
        for file in (
            *folder.glob("*_itn.*"),
            *folder.glob("*_one_pass.*"),
            *(folder.glob("*.h5") if full == "itn" else ()),
        ):
            file.unlink()
        report = json.loads((folder / f"{name}.json").read_text())
        gone = {"loss_before", "loss_after", "iterations", "quality", "quality_score", "quality_reasons"}
        gone |= {"min_jacobian", "folded_fraction"} if full == "itn" else set()
        kept = {key: value for key, value in report.items() if key not in gone}
        write_json(kept | {"loss_curve": []}, folder / f"{name}.json")
    if full == "itn":
        shutil.rmtree(output / "atlas")


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("learned", [False, True], ids=["fused", "learned atlas"])
def test_a_case_of_fused_labels_shows_its_atlases(tmp_path: Path, dim: int, learned: bool) -> None:
    dataset, output = write_run(tmp_path, dim, scored=False)
    suffix = ".png" if dim == 2 else ".nii.gz"
    grid = np.diag([-1.0, -1.0, 1.0, 1.0]) if dim == 2 else atlas_grid_affine(SHAPES[dim], (1.0,) * dim)
    if not learned:
        drop_results(output, "itn")
    for name in CASES:
        folder, labels = output / name, labels_of(dim)
        if learned:
            (folder / f"{name}_itn{suffix}").rename(folder / f"{name}_fused{suffix}")
        write_labelmap(labels, grid, range(3), folder / f"{name}_atlas_1{suffix}")
        write_labelmap(np.roll(labels, 2, 0), grid, range(3), folder / f"{name}_atlas_2{suffix}")
        write_labelmap(2 * (labels > 0), grid, range(3), folder / f"{name}_winner{suffix}")
        write_probability(1 - 0.5 * (labels > 0), grid, folder / f"{name}_agreement{suffix}")
        report = json.loads((folder / f"{name}.json").read_text())
        notes = [{"atlas": f"old_{k}", "ncc": 0.9, "dice": 0.8, "wins": k - 1, "folded_fraction": 0.0} for k in (1, 2)]
        write_json(report | {"atlases": notes}, folder / f"{name}.json")
    write_report(output, dataset)
    html = (output / "report.html").read_text(encoding="utf-8")
    Page(html)
    page = html[html.index('id="case-broken"') :]
    page = page[: page.index("</section>")]
    planes = 1 if dim == 2 else 3
    for number in (1, 2):
        assert page.count(f'<path stroke="{atlas_colour(number)}"') == planes
    assert page.index("<td>2</td>") < page.index("<td>1</td>")  # the one that decides comes first
    assert page.count("the atlas that weighs most") == planes
    assert ('class="c-refine"' in page) == learned
    winner = pixels(re.findall(r'<image class="most".*?href="(.*?)"', page)[0])
    drawn = winner[winner[..., 3] > 0]
    assert len(drawn)
    assert (drawn == colour(atlas_colour(2))).all()
