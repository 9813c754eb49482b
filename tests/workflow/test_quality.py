# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The quality check, the uncertainty map and the ensemble; how they run in the bundle is tested with its workflows."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from atlas_istn.errors import InputError
from atlas_istn.inferers.ensemble import EnsembleInferer
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.result import Result
from atlas_istn.io.outputs import write_json
from atlas_istn.networks import AtlasISTN
from atlas_istn.spatial import Transform
from atlas_istn.workflow.measures import Measures, label_entropy, measure
from atlas_istn.workflow.quality import Population, QualityCheck, fingerprint
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
SHAPE = (24, 24)
IDENTITY = torch.eye(2, 3)


def measured(refined: torch.Tensor, predicted: torch.Tensor) -> Measures:
    """Measures of one case that was not moved."""
    transform = Transform(torch.zeros(1, 2, 12, 12), IDENTITY[None], SHAPE, (1.0, 1.0))
    result = Result(refined, 0.0, predicted, refined.roll(1, dims=2), transform)
    return measure(result)[0]


def usual_cases(count: int = 40, seed: int = 0) -> list[Measures]:
    """Measures of cases that differ a little, by a factor of about 1.1."""
    random = np.random.default_rng(seed)
    names = {
        "misfit": 0.1,
        "disagreement": 0.05,
        "one_pass": 0.1,
        "entropy": 0.4,
        "itn_entropy": 0.3,
        "deformation": 0.02,
    }
    return [
        Measures(
            **{name: value * math.exp(random.normal(0, 0.1)) for name, value in names.items()},
            affine=tuple((IDENTITY.flatten() + 0.05 * torch.from_numpy(random.normal(size=6))).tolist()),
            log_volumes=tuple(math.log(volume) + random.normal(0, 0.1) for volume in (500, 900)),
        )
        for _ in range(count)
    ]


def disagreeing(disagreement: float) -> Measures:
    return replace(usual_cases(1)[0], disagreement=disagreement)


def test_entropy_is_zero_where_certain_and_one_where_all_labels_are_equally_likely() -> None:
    soft = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 2, 2)
    expected = [0.0, 1.0, math.log(2) / math.log(3), 0.0]
    assert label_entropy(soft).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_measures_of_agreement_and_of_disagreement(ring: Callable[..., torch.Tensor]) -> None:
    hard = torch.nn.functional.one_hot(ring(SHAPE).argmax(dim=1), 2).movedim(-1, 1).float()
    moved = hard.roll(2, dims=2)
    same, other = measured(hard, hard), measured(hard, moved)
    for name in ("misfit", "disagreement", "entropy", "deformation"):
        assert getattr(same, name) == pytest.approx(0.0, abs=1e-6)
    overlap, volume = float((hard * moved)[:, 1].sum()), float(hard[:, 1].sum())
    assert other.disagreement == pytest.approx(1 - overlap / volume, abs=1e-5)
    assert other.itn_entropy == pytest.approx(0.0, abs=1e-6)
    assert np.exp(same.log_volumes).tolist() == pytest.approx([volume])
    assert same.one_pass > 0  # of the 1-pass, a voxel beside both
    # A voxel of the wrong class has an error of 2, one on each side of every miss.
    assert other.misfit == pytest.approx(4 * (volume - overlap) / volume, rel=1e-5)


def test_a_usual_case_is_ok_and_an_unusual_one_is_not_for_the_right_reason() -> None:
    check = QualityCheck()
    check.population = Population.of(usual_cases())
    fresh = usual_cases(20, seed=1)
    assert [check(case).flag for case in fresh].count("ok") >= 18
    for name, words in (
        ("misfit", "fits the ITN"),
        ("disagreement", "ITN and refined labels differ more"),
        ("one_pass", "ITN and 1-pass labels differ more"),
        ("entropy", "propagated labels are less certain"),
        ("itn_entropy", "the ITN is less certain"),
        ("deformation", "stronger"),
    ):
        verdict = check(replace(fresh[0], **{name: 3 * getattr(fresh[0], name)}))
        assert verdict.flag != "ok"
        assert words in verdict.reasons[0]
        assert verdict.score > check(fresh[0]).score
    far = tuple(np.add(fresh[0].affine, [0, 0, 5.0, 0, 0, 0]))
    assert "position" in check(replace(fresh[0], affine=far)).reasons[0]
    for factor in (0.3, 3.0):  # one label too small or too large
        small = (fresh[0].log_volumes[0], math.log(900 * factor))
        assert check(replace(fresh[0], log_volumes=small)).reasons[0].startswith("the volume of a label is unusual")


def test_it_takes_several_very_unusual_measures_to_fail() -> None:
    check = QualityCheck()
    check.population = Population.of(usual_cases())
    case = usual_cases(1, seed=1)[0]
    for count, flag in ((1, "review"), (2, "review"), (3, "fail")):
        odd = {name: 5 * getattr(case, name) for name in ("misfit", "entropy", "deformation")[:count]}
        assert check(replace(case, **odd)).flag == flag


def test_less_than_usual_is_no_reason_for_alarm() -> None:
    check = QualityCheck()
    check.population = Population.of(usual_cases())
    perfect = dict.fromkeys(("misfit", "disagreement", "one_pass", "entropy", "itn_entropy", "deformation"), 0.0)
    usual = {"affine": tuple(IDENTITY.flatten().tolist()), "log_volumes": (math.log(500), math.log(900))}
    assert check(Measures(**perfect, **usual)).flag == "ok"


@pytest.mark.parametrize(
    ("disagreement", "folded", "empty", "flag", "reason"),
    [
        (0.1, 0.0, 0, "ok", None),
        (0.4, 0.0, 0, "review", "Dice of ITN and refined labels is 0.60"),
        (0.6, 0.0, 0, "fail", "Dice of ITN and refined labels is 0.40"),
        (0.1, 0.02, 0, "review", "2.00% of the transform folds"),
        (0.4, 0.02, 1, "fail", "1 label is empty"),
    ],
)
def test_fixed_limits_hold_without_calibration(
    disagreement: float, folded: float, empty: int, flag: str, reason: str | None
) -> None:
    verdict = QualityCheck("nowhere/quality.json")(disagreeing(disagreement), folded, empty)
    assert verdict.flag == flag
    assert (verdict.reasons[:1] or [None])[0] == reason
    assert verdict.score == disagreement


def test_a_result_without_the_topology_of_the_atlas_is_to_be_reviewed() -> None:
    verdict = QualityCheck()(disagreeing(0.1), topology_kept=False)
    assert (verdict.flag, verdict.reasons) == ("review", ["the topology is not the atlas's"])


def test_outliers_hardly_move_the_population() -> None:
    cases = usual_cases()
    spoiled = [*cases[4:], *[replace(case, misfit=100.0) for case in cases[:4]]]
    clean, robust = Population.of(cases), Population.of(spoiled)
    # A tenth of outliers moves the median of a normal distribution by 0.14 spreads of 0.1, and widens the MAD by 20 %.
    assert robust.median["misfit"] == pytest.approx(clean.median["misfit"], abs=0.04)
    assert robust.spread["misfit"] < 1.6 * clean.spread["misfit"]


def test_calibration_is_written_and_belongs_to_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    path, model = tmp_path / "quality.json", tmp_path / "model.pt"
    write_json(asdict(Population.of(usual_cases(), fingerprint(model), {"refine_iterations": 50})), path)
    check = QualityCheck(path, model, {"refine_iterations": 50})
    assert check.population is not None
    assert check.population.cases == 40
    other = QualityCheck(path, model, {"refine_iterations": 20})
    assert other.population is None
    assert other(disagreeing(0.1)).flag == "not calibrated (other refine_iterations)"
    assert other(disagreeing(0.4)).flag == "review"  # fixed limits hold all the same
    model.write_bytes(b"other weights")
    assert QualityCheck(path, model).population is None
    assert "another model" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": 30}'])
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "quality.json").write_text(text)
    with pytest.raises(InputError, match=r"quality\.json.*Calibrate again"):
        QualityCheck(tmp_path / "quality.json")


def test_too_few_cases_tell_nothing_and_say_so(tmp_path: Path) -> None:
    write_json(asdict(Population.of(usual_cases(3))), tmp_path / "quality.json")
    assert QualityCheck(tmp_path / "quality.json")(disagreeing(0.1)).flag == "not calibrated (n = 3)"


def test_without_a_refinement_there_is_nothing_to_measure(ring: Callable[..., torch.Tensor]) -> None:
    assert measure(Result(ring(SHAPE), 0.0)) == []


@pytest.fixture
def network(tiny_network: Callable[..., AtlasISTN], ring: Callable[..., torch.Tensor]) -> AtlasISTN:
    """Its ITN is right, its 1-pass the identity; the rings are the image."""
    itn = torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        itn.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))
        itn.bias.copy_(torch.tensor([1.0, 0.0]))
    return tiny_network(SHAPE, itn=itn).eval()


def test_one_member_is_the_refinement_alone(network: AtlasISTN, ring: Callable[..., torch.Tensor]) -> None:
    image, inferer = ring(SHAPE, shift=1.0)[:, 1:], RefinementInferer(iterations=3)
    result = EnsembleInferer(inferer).infer(image, network)
    assert result.ensemble is None
    assert torch.equal(EnsembleInferer(inferer)(image, network), inferer(image, network))


def test_the_ensemble_keeps_the_result_and_repeats_in_any_order(
    network: AtlasISTN, ring: Callable[..., torch.Tensor]
) -> None:
    images = torch.cat([ring(SHAPE, shift=1.0)[:, 1:], ring(SHAPE, shift=-1.0)[:, 1:]])
    refinement = RefinementInferer(iterations=3)
    inferer = EnsembleInferer(refinement, members=3)
    result = inferer.infer(images, network)
    assert torch.equal(result.segmentation, refinement(images, network))
    backwards = inferer.infer(images.flip(0), network)
    torch.testing.assert_close(backwards.ensemble.flip(0), result.ensemble, rtol=0, atol=1e-4)
    alone = torch.cat([inferer.infer(image[None], network).ensemble for image in images])
    torch.testing.assert_close(alone, result.ensemble, rtol=0, atol=1e-4)
    other = EnsembleInferer(refinement, members=3, seed=1).infer(images, network)
    assert (other.ensemble - result.ensemble).abs().max() > 1e-3


def test_uncertainty_is_higher_where_the_members_disagree(
    network: AtlasISTN, ring: Callable[..., torch.Tensor]
) -> None:
    """One half of the image shows nothing that could hold the atlas in place."""
    image = ring(SHAPE)[:, 1:].clone()
    refinement = RefinementInferer(iterations=15, regularisation=0.01)
    held = EnsembleInferer(refinement, members=5).infer(image, network)
    free = EnsembleInferer(RefinementInferer(iterations=0), members=5).infer(image, network)
    certain = label_entropy(held.segmentation)
    # What the image settles, all members agree upon; without refinement each stays where it started.
    gained = [float((label_entropy(result.ensemble) - certain).clamp_min(0).sum()) for result in (held, free)]
    assert gained[1] > 2 * gained[0]
    members = [EnsembleInferer(refinement, members=2, seed=seed).infer(image, network) for seed in range(4)]
    second = torch.stack([2 * member.ensemble - member.segmentation for member in members])
    disagree = second.argmax(dim=2).float().var(dim=0) > 0
    mean = label_entropy(second.mean(dim=0))[:, 0]
    assert disagree.any()
    assert mean[disagree].mean() > 2 * mean[~disagree].mean()


def test_an_ensemble_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        EnsembleInferer(RefinementInferer(), members=0)
    with pytest.raises(InputError, match="field"):
        EnsembleInferer(RefinementInferer(mode="weights"), members=2)


def test_a_calibration_is_valid_json(tmp_path: Path) -> None:
    write_json(asdict(Population.of(usual_cases())), tmp_path / "quality.json")
    assert QualityCheck(tmp_path / "quality.json").population == Population.of(usual_cases())


def test_calibrate_and_infer_as_a_user_does(
    tmp_path: Path, ring: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine rings, one of them filled and cut in half: it stands out, whether calibrated on it too or not."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflows replace it
    settings = {
        "spatial_size": [24, 24],
        "spacing": [1.0, 1.0],
        "label_names": {0: "background", 1: "ring"},
        "itn": "$torch.nn.Conv2d(1, 2, 1)",
        "itn_activation": None,
        "stn#channels": [8, 16],
        "refine_iterations": 5,
        "batch_size": 3,
        "amp": False,
        "device": "$torch.device('cpu')",
        "dataset_dir": str(tmp_path / "images"),
        "output_dir": str(tmp_path / "out"),
        "ckpt_path": str(tmp_path / "model.pt"),
    }
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    reference = nib.Nifti1Image(ring(SHAPE)[0, 1].numpy().round().astype(np.uint8), np.eye(4))
    nib.save(reference, tmp_path / "images" / "label.nii")
    for number in range(9):
        image = ring(SHAPE, shift=random.uniform(-0.5, 0.5))[0, 1].numpy() + 0.03 * random.normal(size=SHAPE)
        if number == 8:
            image[12:], image[8:12] = 0.0, 1.0
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), tmp_path / f"images/{number}.nii")

    entries = [{"image": f"{number}.nii", "label": "label.nii"} for number in range(9)]
    (tmp_path / "images" / "dataset.json").write_text(json.dumps({"validation": entries, "test": entries}))
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    for key, value in settings.items():
        parser[key] = value
    network = parser.get_parsed_content("network_def")
    with torch.no_grad():
        network.itn.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1))
        network.itn.bias.copy_(torch.tensor([1.0, 0.0]))
        network.atlas_labels.copy_(ring(SHAPE))
    torch.save(network.state_dict(), tmp_path / "model.pt")

    def run(run_id: str, **more: object) -> None:
        flow = ConfigWorkflow(
            config_file=str(CONFIGS / f"{run_id}.yaml"), run_id=run_id, logging_file=False, **{**settings, **more}
        )
        flow.initialize()
        flow.run()

    run("calibrate")
    assert json.loads((tmp_path / "quality.json").read_text())["cases"] == 9
    run("inference", ensemble=2, write_uncertainty=True)
    reports = [json.loads((tmp_path / f"out/{number}/{number}.json").read_text()) for number in range(9)]
    assert reports[8]["quality"] != "ok"
    assert max(range(9), key=lambda number: reports[number]["quality_score"]) == 8
    assert len(reports[0]["loss_curve"]) == 6
    assert reports[0]["labels"] == {"ring": 1}
    estimates = [report["predicted_dice"]["ring"] for report in reports]
    assert min(range(9), key=lambda number: estimates[number]["dice"]) == 8
    assert all(0 <= estimate["low"] <= estimate["dice"] <= estimate["high"] <= 1 for estimate in estimates)
    with (tmp_path / "out" / "summary.csv").open(newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    assert rows["8"]["quality"] == reports[8]["quality"]
    assert rows["8"]["quality_reasons"] == "; ".join(reports[8]["quality_reasons"])
    assert "loss_curve" not in rows["8"]
    columns = ("predicted Dice", "predicted Dice, low", "predicted Dice, high")
    assert [float(rows["8"][f"ring {column}"]) for column in columns] == list(estimates[8].values())
    entropy = nib.load(tmp_path / "out/0/0_uncertainty.nii.gz")
    labels = nib.load(tmp_path / "out/0/0_seg.nii.gz")
    assert entropy.shape == labels.shape
    np.testing.assert_allclose(entropy.affine, labels.affine)
    assert 0 <= entropy.get_fdata().min() < 0.2
    assert 0.5 < entropy.get_fdata().max() <= 1
