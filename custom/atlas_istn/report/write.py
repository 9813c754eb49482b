# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command `report`: reads a run, has its cases drawn and fills the template."""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from .. import __version__
from ..errors import InputError
from ..evaluation.scores import read_metrics
from ..io.files import write_whole
from ..io.results import (
    RESULTS,
    find_case_folders,
    find_results,
    image_dimensions,
    is_registered,
    length_unit,
    read_atlas_to_subject,
    read_case_report,
    read_oriented,
    result_file,
)
from ..io.sources import find_sources
from ..pictures.palette import ALERT, RESULT_COLOURS, TRUTH, label_colour
from ..pictures.planes import MARGIN, Plane, atlas_coordinates, choose_planes
from ..topology import labelmap_topology
from . import drawing
from .atlases import AtlasPictures, AtlasRow, FusedAtlases, atlas_rows
from .badges import fold_badges, topology_badges
from .charts import CURVE, BoxPlot, Curve, box_plot, curve
from .pairs import find_pair_folders, write_pair_report
from .units import Units

__all__ = ["write_report"]

FLAGS = ("fail", "review", "ok", "unrated")


@dataclass(frozen=True)
class View:
    """The drawn pictures of one plane: data URIs and SVG paths in millimetres; and where the labels are.

    What a run does not have, such as a deformed grid without a registration, is empty.
    """

    plane: Plane
    image: str
    labels: str
    outlines: dict[str, str] = field(default_factory=dict)
    difference: str = ""
    grid: str = ""
    volume: str = ""
    uncertainty: str = ""
    atlases: AtlasPictures | None = None
    focus: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CasePage:
    """What the page of a case shows, and its row in the table.

    Attributes:
        name: of the case.
        report: its JSON.
        results: names of the results that it has; the last one is that of the full method.
        flag: one of `FLAGS`.
        badges: (kind, text): kind is ``"good"`` or ``"bad"``.
        volumes: label → size in the result of the full method, in the report's units.
        metrics: result → label → row of ``metrics.csv``.
        dice: result → mean over labels.
        curve: of the refinement, where there was one.
        whole: whether every label has the topology that it has in the atlas.
        atlases: whose labels were fused.
        views: one per plane.
    """

    name: str
    report: dict[str, Any]
    results: list[str]
    flag: str
    badges: list[tuple[str, str]]
    volumes: dict[str, float]
    metrics: dict[str, dict[str, dict[str, Any]]]
    dice: dict[str, float]
    curve: Curve | None
    whole: bool
    atlases: list[AtlasRow]
    views: list[View]

    @property
    def full(self) -> str:
        """Name of the result of the full method."""
        return self.results[-1]

    @property
    def findings(self) -> list[str]:
        """What is said in the table: topology that is not the atlas's, then reasons and warnings."""
        bad = [text for kind, text in self.badges if kind == "bad"]
        return bad + self.report.get("quality_reasons", []) + self.report.get("warnings", [])

    @property
    def predicted(self) -> dict[str, dict[str, float]]:
        """Label → its predicted Dice and the interval; empty where that is not calibrated."""
        found = self.report.get("predicted_dice", {})
        return found if isinstance(found, dict) else {}

    @property
    def weakest(self) -> str:
        """Name of the label whose interval reaches lowest; empty where nothing is predicted."""
        return min(self.predicted, key=lambda name: self.predicted[name]["low"], default="")

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorting by it puts the conspicuous cases first."""
        bad = sum(kind == "bad" for kind, _ in self.badges)
        score = self.report.get("quality_score", 0.0)
        return FLAGS.index(self.flag), -bad, -score, self.dice.get(self.full, 0.0), self.name


def write_report(
    output_dir: str | Path, dataset_dir: str | Path = "", data_list: str = "", path: str | Path = ""
) -> None:
    """Write one HTML file about an inference or evaluation run, which needs neither network nor other files.

    Its first page compares the cases, the conspicuous ones first; every case has a page with the outlines of its
    results, their differences, the deformed grid of the atlas, local volumes, the course of the refinement and its
    warnings. Scores are shown where the run has a ``metrics.csv``, that is after `evaluate`. Of a run that registered
    pairs it shows these, see `write_pair_report`; nothing but its folder is needed.

    Args:
        output_dir: what inference or evaluation wrote.
        dataset_dir: the data set that was run, for the images and, where it has labels, the truth; without it the
            outlines are drawn upon nothing.
        data_list: list of the data set; default whatever list has a case.
        path: file to write; default ``OUTPUT_DIR/report.html``.

    Raises:
        InputError: there are no results in the folder, the data set has none of their images, or a file cannot be
            read or written.
    """
    output = Path(output_dir)
    if find_pair_folders(output):
        write_pair_report(output, Path(path or output / "report.html"))
        return
    folders = find_case_folders(output)
    if not folders:
        raise InputError(f"{output}: found no results of inference. Run inference first, with this output_dir.")
    names = [folder.name for folder in folders]
    metrics = _metrics(output / "metrics.csv")
    files = [result_file(folder, RESULTS["refine"].ending) for folder in folders]
    dim = image_dimensions(files[0])
    first = read_case_report(folders[0])
    sources = find_sources(Path(dataset_dir), data_list, names, first.get("channels", 1) > 1) if dataset_dir else {}
    colours = {value: label_colour(number) for number, value in enumerate(first["labels"].values())}
    atlas = _Atlas(output / "atlas", dim, colours) if (output / "atlas").is_dir() else None
    units = Units.of(dim, length_unit(files[0], first.get("pixel_size")))
    with _one_thread():
        pages = [
            _page(folder, dim, atlas, units, colours, sources.get(folder.name, {}), metrics.get(folder.name, {}))
            for folder in tqdm(folders, desc="report", unit="case")
        ]
    pages.sort(key=lambda page: page.rank)
    loader = jinja2.PackageLoader("atlas_istn", "report")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["significant"] = _significant
    shown = [name for name in RESULTS if any(name in page.results for page in pages)]
    html = environment.get_template("report.html.j2").render(
        pages=pages,
        flags={page.name: page.flag for page in pages},
        labels=list(dict.fromkeys(name for page in pages for name in page.volumes)),
        units=units,
        scored=any(page.dice for page in pages),
        truth=any("truth" in page.views[0].outlines for page in pages),
        findings=any(page.findings for page in pages),
        predicted=any(page.predicted for page in pages),
        thumbnail=_largest_view(pages),
        failed=_failed(output / "summary.csv"),
        plots=_plots(pages, units),
        counts={flag: sum(page.flag == flag for page in pages) for flag in FLAGS},
        results={name: RESULTS[name].title for name in shown},
        colours_of={**RESULT_COLOURS, "truth": TRUTH},
        registered=any(page.views[0].grid for page in pages),
        refined="refine" in shown,
        other_label=ALERT,
        gradients={
            "volume": drawing.gradient(drawing.VOLUME_COLOURS),
            "uncertainty": drawing.gradient(drawing.UNCERTAINTY_COLOURS),
        },
        curve_size=CURVE,
        colours=colours,
        atlas=atlas,
        version=__version__,
    )
    target = Path(path or output / "report.html")
    write_whole(target, lambda part: part.write_text(html, encoding="utf-8"))
    missing = len(names) - len(sources) if dataset_dir else 0
    without = f" ({missing} without an image in {dataset_dir})" if missing else ""
    sys.stdout.write(f"{target}: {len(pages)} cases{without}, {target.stat().st_size / 2**20:.1f} MB\n")


@contextmanager
def _one_thread() -> Iterator[None]:
    """A plane is too little to share: PyTorch's threads would spend longer waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Atlas:
    """The atlas of a run: the topology of its labels, and a picture of it."""

    def __init__(self, folder: Path, dim: int, colours: Mapping[int, str]) -> None:
        path = folder / "atlas_labelmap.nii.gz"
        if not path.is_file():
            raise InputError(f"{path}: no such file. Expected the atlas that inference writes. Run inference again.")
        labelmap = read_oriented(path, dim)
        values = sorted({int(value) for value in labelmap.unique()} - {0})
        self.topology = labelmap_topology(_values(labelmap), values)
        image = read_oriented(folder / "atlas_image.nii.gz", dim)
        self.views = [
            View(
                plane,
                drawing.grey(plane.cut(image[0].numpy())),
                drawing.tinted(plane.cut(_values(labelmap)), colours),
            )
            for plane in choose_planes(_values(labelmap), labelmap.pixdim.tolist(), MARGIN)
        ]


def _values(labelmap: MetaTensor) -> npt.NDArray[np.int64]:
    """Whole numbers ``[*shape]`` of a labelmap ``[1, *shape]``."""
    return np.asarray(labelmap[0]).astype(int)


def _metrics(path: Path) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Case → result → label → row, of a ``metrics.csv``; empty if there is none."""
    table: dict[str, dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_metrics(path) if path.is_file() else []:
        table[row["case"]][row["result"]][row["label"]] = row
    return table


def _failed(path: Path) -> list[str]:
    """Cases of a ``summary.csv`` that have no results; not why, since the reason may name files."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row["case"] for row in csv.DictReader(stream) if row.get("error")]


def _page(
    folder: Path,
    dim: int,
    atlas: _Atlas | None,
    units: Units,
    colours: Mapping[int, str],
    source: Mapping[str, str],
    metrics: dict[str, dict[str, dict[str, Any]]],
) -> CasePage:
    report = read_case_report(folder)
    pixel_size = report.get("pixel_size")
    maps = {name: read_oriented(file, dim, pixel_size) for name, file in find_results(folder, report).items()}
    results = list(maps)
    segmentation = maps[results[-1]]
    size = float(segmentation.pixdim[:dim].prod()) * units.scale
    scores = {result: [row["dice"] for row in rows.values()] for result, rows in metrics.items()}
    topology = topology_badges(report, atlas.topology if atlas else {})
    flag = report.get("quality", "")
    return CasePage(
        folder.name,
        report,
        results,
        flag if flag in FLAGS else "unrated",
        topology + fold_badges(report),
        {name: float((segmentation == value).sum()) * size for name, value in report["labels"].items()},
        metrics,
        {result: float(np.nanmean(dice)) for result, dice in scores.items() if not np.isnan(dice).all()},
        curve(report["loss_curve"]) if report["loss_curve"] else None,
        all(kind == "good" for kind, _ in topology),
        atlas_rows(report),
        _views(folder, maps, source, colours, FusedAtlases.read(folder, report, dim)),
    )


def _views(
    folder: Path,
    maps: Mapping[str, MetaTensor],
    source: Mapping[str, str],
    colours: Mapping[int, str],
    atlases: FusedAtlases | None,
) -> list[View]:
    """Draw the planes of a case: its results, with the image and the truth where the data set has them."""
    *before, full = maps
    segmentation = maps[full]
    dim = segmentation.ndim - 1
    image = read_oriented(source["image"], dim)[0].numpy() if source else None
    if image is not None and image.shape != segmentation.shape[1:]:
        raise InputError(f"{folder}: the image has another size than the results. Pass the dataset_dir that was run.")
    truth = {"truth": _values(read_oriented(source["label"], dim, label=True))} if "label" in source else {}
    labels = {name: _values(labelmap) for name, labelmap in maps.items()} | truth
    anything = np.any([labelmap > 0 for labelmap in labels.values()], axis=0)
    path = result_file(folder, "uncertainty")
    entropy = read_oriented(path, dim)[0].numpy() if path.is_file() else None
    transform = read_atlas_to_subject(folder) if is_registered(folder) else None
    views = []
    for plane in choose_planes(anything, segmentation.pixdim.tolist(), MARGIN):
        cuts = {name: plane.cut(labelmap) for name, labelmap in labels.items()}
        grid, volume = "", ""
        if transform:
            across, down, determinant = atlas_coordinates(transform, segmentation.affine.numpy(), plane)
            grid, volume = drawing.grid((across, down), plane), drawing.local_volume(determinant)
        changes = ""
        if before:
            compared = (RESULT_COLOURS[before[0]], RESULT_COLOURS[full])
            changes = drawing.difference(cuts[before[0]], cuts[full], compared)
        views.append(
            View(
                plane,
                "" if image is None else drawing.grey(plane.cut(image)),
                drawing.tinted(cuts[full], colours),
                {name: drawing.outlines(cut, plane) for name, cut in cuts.items()},
                changes,
                grid,
                volume,
                "" if entropy is None else drawing.uncertainty(plane.cut(entropy)),
                atlases.draw(plane) if atlases else None,
                plane.focus(plane.cut(anything)),
            )
        )
    return views


def _largest_view(pages: Sequence[CasePage]) -> int:
    """The number of the plane in which the anatomy is largest, over all cases."""
    areas = [[view.focus[2] * view.focus[3] for view in page.views] for page in pages]
    return int(np.sum(areas, axis=0).argmax())


def _significant(value: float) -> str:
    """A number with two significant digits, or as a whole number."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:#.2g}".rstrip(".")


def _plots(pages: Sequence[CasePage], units: Units) -> list[BoxPlot]:
    """The distributions that the first page shows."""

    def collect(key: str) -> dict[str, float]:
        return {page.name: float(page.report.get(key, math.nan)) for page in pages}

    def score(metric: str) -> dict[str, dict[str, float]]:
        return {
            kind.title: {page.name: _mean(row[metric] for row in page.metrics.get(name, {}).values()) for page in pages}
            for name, kind in RESULTS.items()
        }

    labels = dict.fromkeys(name for page in pages for name in page.volumes)
    volumes = {name: {page.name: page.volumes.get(name, math.nan) for page in pages} for name in labels}
    predicted = {
        name: {page.name: page.predicted.get(name, {}).get("dice", math.nan) for page in pages} for name in labels
    }
    plots = [
        box_plot("Dice", score("dice")),
        box_plot(f"95 % Hausdorff distance [{units.length}]", score("hd95")),
        box_plot(
            "Objective",
            {RESULTS["one_pass"].title: collect("loss_before"), RESULTS["refine"].title: collect("loss_after")},
        ),
        box_plot("Quality score", {"": collect("quality_score")}),
        box_plot("Predicted Dice", predicted),
        box_plot("Smallest Jacobian", {"": collect("min_jacobian")}),
        box_plot(f"{units.measure.capitalize()} [{units.size}]", volumes),
        box_plot("Iterations", {"": collect("iterations")}),
    ]
    return [plot for plot in plots if plot]


def _mean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
