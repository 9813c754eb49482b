# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Does the quality check find the results with a low Dice? Labelled images are degraded, segmented and judged.

A result is bad if its Dice (mean over labels, on the model's grid) is more than --drop below the median of the
undegraded images, and spoiled if it is so far below that of the same image undegraded. Prints the area under the ROC
curve of the score and of every measure by itself for both, what the flags found, and how often the Dice of a label lies
within its predicted interval; draws the curves for bad results.
The check must be calibrated first, on other cases than those of --list:

    python -m monai.bundle run calibrate --config_file bundle/configs/calibrate.yaml ...
    python benchmarks/quality.py --ckpt bundle/models/model.pt --config bundle/configs/data/hippocampus.yaml \
        --dataset_dir data/hippocampus --list test --picture bundle/docs/quality_roc.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.metrics import DiceMetric
from scipy.stats import binomtest, mannwhitneyu, spearmanr
from torch.nn.functional import one_hot
from tqdm import tqdm

from atlas_istn.data.degradations import KINDS, degrade
from atlas_istn.io.cases import find_cases
from atlas_istn.io.files import write_whole
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import write_csv
from atlas_istn.workflow.label_measures import dice_of_labels, measure_labels
from atlas_istn.workflow.measures import measure
from atlas_istn.workflow.quality import REASONS, QualityCheck

__all__ = ["main"]

CONFIGS = Path(__file__).resolve().parents[1] / "bundle/configs"
COLOURS = {"ok": "#17794a", "review": "#e0a100", "fail": "#b3261e"}


def _conditions(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    return [("clean", 0), *((kind, strength) for kind in arguments.kinds for strength in arguments.strengths)]


def _images(case: dict[str, str], dim: int, conditions: Sequence[tuple[str, int]]) -> Iterator[Any]:
    image = read_volume(case["image"], dim)
    for kind, strength in conditions:
        yield image if kind == "clean" else degrade(image, kind, strength)


def _measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case and condition: Dice, flag, score and the z-score of every measure."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "evaluate.yaml"), arguments.config])
    parser["device"] = torch.device("cpu")
    parser["evaluate_space"] = "model"
    network, preprocessing, inferer, reference = (
        parser.get_parsed_content(name) for name in ("network_def", "preprocessing", "inferer", "reference")
    )
    network.load_state_dict(torch.load(arguments.ckpt, map_location="cpu", weights_only=True))
    network.eval()
    dim, classes = parser.get_parsed_content("spatial_dims"), parser.get_parsed_content("num_classes")
    check = QualityCheck(arguments.quality or Path(arguments.ckpt).with_name("quality.json"), arguments.ckpt)
    if check.population is None:
        raise SystemExit("There is no quality.json of this model. Calibrate first.")
    conditions, rows = _conditions(arguments), []
    for case in tqdm(find_cases(arguments.dataset_dir, arguments.list, True)[: arguments.cases]):
        images = torch.stack([preprocessing({"image": i})["image"].as_tensor() for i in _images(case, dim, conditions)])
        truth = torch.as_tensor(reference(case)["label"])[None].long()[:, 0]
        result = inferer.infer(images, network)
        masks = [one_hot(labels, classes).movedim(-1, 1) for labels in (result.segmentation.argmax(dim=1), truth)]
        dice = DiceMetric(include_background=False)(masks[0], masks[1].expand_as(masks[0])).nanmean(dim=1)
        measures, of_labels = measure(result), measure_labels(result, images, network.atlas_image).tolist()
        labels = dice_of_labels(result.segmentation, masks[1].expand_as(masks[0]).float()).tolist()
        for index, (kind, strength) in enumerate(conditions):
            mine = measures[index]
            verdict = check(mine)
            about = {"case": case["case"], "kind": kind, "strength": strength, "dice": float(dice[index])}
            scores = check.population.z_scores(mine)
            rows.append({**about, "flag": verdict.flag, "score": verdict.score, **scores})
            found = check.predict(of_labels[index])
            for label, estimate in enumerate(found if isinstance(found, list) else [], 1):
                if estimate:
                    rows[-1] |= {f"{label} {name}": value for name, value in estimate._asdict().items()}
                    rows[-1][f"{label} true"] = labels[index][label - 1]
    return rows


def _print_predicted(rows: Sequence[dict[str, Any]]) -> None:
    """Of each label: how many results lie within their interval, how wide it is, and how well the Dice is ranked."""
    labels = [key.removesuffix(" true") for key in rows[0] if key.endswith(" true")]
    print("label  images        within  95 % (Wilson)  median width  Spearman  of the ITN's entropy")
    for label in labels:
        for name in ("clean", "degraded", *sorted({row["kind"] for row in rows} - {"clean"})):
            chosen = [row for row in rows if name in ("clean" if row["kind"] == "clean" else "degraded", row["kind"])]
            true, dice, low, high = (
                np.array([row[f"{label} {key}"] for row in chosen]) for key in ("true", "dice", "low", "high")
            )
            within = int(((low <= true) & (true <= high)).sum())
            ends = binomtest(within, len(chosen)).proportion_ci(method="wilson")
            ranks = [spearmanr(values, true).statistic for values in (dice, [-row["itn_entropy"] for row in chosen])]
            print(
                f"{label:7}{name:14}{within:>4}/{len(chosen):<4}{ends.low:8.2f} to {ends.high:.2f}"
                f"{np.median(high - low):12.3f}{ranks[0]:10.2f}{ranks[1]:13.2f}"
            )


def _area(scores: np.ndarray, bad: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a bad result scores higher than a good one."""
    return float(mannwhitneyu(scores[bad], scores[~bad]).statistic / (bad.sum() * (~bad).sum()))


def _curve(scores: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, kind="stable")
    hits, alarms = np.cumsum(bad[order]), np.cumsum(~bad[order])
    return np.r_[0, alarms / alarms[-1]], np.r_[0, hits / hits[-1]]


def _draw(rows: Sequence[dict[str, Any]], bad: np.ndarray, limit: float, path: str) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    roc, scatter = figure.subplots(1, 2)
    for name in ("score", *REASONS):
        scores = np.array([row[name] for row in rows])
        width = 2.5 if name == "score" else 1.0
        roc.plot(*_curve(scores, bad), label=f"{name} ({_area(scores, bad):.2f})", linewidth=width)
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.5, linestyle="dashed")
    roc.set(xlabel="good results called bad", ylabel="bad results found", title="ROC (area)", aspect="equal")
    roc.legend(fontsize=8, loc="lower right")
    for flag, colour in COLOURS.items():
        chosen = [(row["score"], row["dice"]) for row in rows if row["flag"] == flag]
        if chosen:
            scatter.scatter(*zip(*chosen, strict=True), s=12, color=colour, alpha=0.7, label=f"{flag} ({len(chosen)})")
    scatter.axhline(limit, color="grey", linewidth=0.8, linestyle="dashed")
    scatter.set(xlabel="score", ylabel="Dice", title="flags")
    scatter.legend(fontsize=8)
    write_whole(path, lambda part: figure.savefig(part, dpi=100))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="trained model.pt")
    parser.add_argument("--quality", default="", help="quality.json; default beside the model")
    parser.add_argument("--config", default=str(CONFIGS / "data/hippocampus.yaml"), help="data config")
    parser.add_argument("--dataset_dir", default="data/hippocampus")
    parser.add_argument("--list", default="test", help="list of dataset.json, with labels")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--strengths", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--drop", type=float, default=0.05, help="loss of Dice that makes a result bad")
    parser.add_argument("--picture", default="quality_roc.png", help="the rows go beside it, as CSV")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Print the tables and draw the picture."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows = _measure(arguments)
    write_csv(rows, Path(arguments.picture).with_suffix(".csv"))
    _print_predicted(rows)
    dice = np.array([row["dice"] for row in rows])
    limit = float(np.median([row["dice"] for row in rows if row["kind"] == "clean"])) - arguments.drop
    bad = dice < limit
    print(f"{len(rows)} results, {bad.sum()} with Dice < {limit:.3f}")
    print(f"{'flag':8}{'results':>9}{'bad':>6}{'median Dice':>13}{'least Dice':>12}")
    for flag in COLOURS:
        chosen = np.array([row["flag"] == flag for row in rows])
        if chosen.any():
            shown = f"{np.median(dice[chosen]):13.3f}{dice[chosen].min():12.3f}"
            print(f"{flag:8}{chosen.sum():9}{(chosen & bad).sum():6}{shown}")
    whole = {row["case"]: row["dice"] for row in rows if row["kind"] == "clean"}
    spoiled = dice < np.array([whole[row["case"]] for row in rows]) - arguments.drop
    if not bad.any() or bad.all() or not spoiled.any():
        raise SystemExit("No ROC: results must be bad and good. Change --drop or the strengths.")
    print(f"{'AUC':14}{'bad':>8}{f'spoiled ({spoiled.sum()})':>16}")
    for name in ("score", *REASONS):
        scores = np.array([row[name] for row in rows])
        print(f"{name:14}{_area(scores, bad):8.3f}{_area(scores, spoiled):16.3f}")
    _draw(rows, bad, limit, arguments.picture)


if __name__ == "__main__":
    main()
