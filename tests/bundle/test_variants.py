# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""The paper's baselines and ablations: each trains, and is evaluated, through the bundle's own configurations."""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from atlas_istn.errors import input_error_behind
from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.networks import AtlasISTN, SpatialTransformerNetwork, UNet
from atlas_istn.pictures.figure import draw_results
from atlas_istn.report import write_report
from atlas_istn.spatial import mixed_precision
from atlas_istn.training.losses import AtlasISTNLoss
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
ALL = ["itn", "one_pass", "refine"]
RESULTS = {
    "unet": ["itn"],
    "vml": ["one_pass"],
    "no_seg_loss": ["one_pass"],
    "fixed_atlas": ALL,
    "svf_only": ALL,
    "independent": ALL,
}
TRAINED = [name for name in RESULTS if name != "independent"]
RUNS = [(name, 2) for name in RESULTS] + [(name, 3) for name in ("unet", "vml", "independent", "svf_only")]
SIZES = {2: [32, 32], 3: [16, 16, 16]}


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflows replace it; pytest should find its own again."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def write_picture(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if voxels.ndim == 2:
        Image.fromarray(voxels.T).save(path)
    else:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def draw_cases(folder: Path, dim: int, islands: bool = False) -> Path:
    """4 noisy ellipses (ellipsoids) with a hole: 3 for training, 1 for validation and test."""
    rng = np.random.default_rng(dim)
    size = SIZES[dim]
    suffix = ".png" if dim == 2 else ".nii.gz"
    entries = []
    for number in range(4):
        radii, shift = rng.uniform(0.25, 0.4, dim) * size[0], rng.uniform(-1, 1, dim)
        points = np.moveaxis(np.indices(size), 0, -1) - (size[0] - 1) / 2
        radius = (((points - shift) / radii) ** 2).sum(axis=-1)
        label = ((radius < 1) & (radius > 0.1)).astype(np.uint8)
        shown = label.copy()
        if islands:
            shown[:2, :2] = shown[-3:, -3:] = 1
        image = (60 + 120 * shown + rng.normal(0, 8, label.shape)).clip(0, 255).astype(np.uint8)
        names = [f"{kind}/case_{number}{suffix}" for kind in ("images", "labels")]
        for name, voxels in zip(names, (image, 255 * label), strict=True):
            write_picture(folder / name, voxels)
        entries.append({"image": names[0], "label": names[1]})
    lists = {"training": entries[:3], "validation": entries[3:], "test": entries[3:]}
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def prepare(run_id: str, files: list[str], dim: int, **settings: Any) -> ConfigWorkflow:
    """A workflow of bundle/configs/FILES over the letter B's configuration, with everything made small."""
    small = {
        "bundle_root": str(CONFIGS.parent),
        "spatial_size": SIZES[dim],
        "spacing": [1.0] * dim,
        "itn_member#filters": [4, 8, 8],
        "itn_kernels": [3] * 3,
        "itn_strides": [1, 2, 2],
        "stn#channels": [4, 8],
        "batch_size": 2,
        "refine_iterations": 3,
        "device": "cpu",
    }
    if run_id == "training":
        small |= {"max_epochs": 1, "val_interval": 1, "extra_augmentation": []}
    stack = [str(CONFIGS / f"{name}.yaml") for name in files]
    kind = "train" if run_id == "training" else "infer"
    workflow = ConfigWorkflow(stack, workflow_type=kind, run_id=run_id, logging_file=False, **small | settings)
    workflow.initialize()
    return workflow


def train(variant: str, dim: int, folders: dict[str, str], **settings: Any) -> ConfigWorkflow:
    workflow = prepare("training", ["train", "data/letter_b", f"variants/{variant}"], dim, **folders, **settings)
    workflow.run()
    return workflow


def evaluate(variants: list[str], dim: int, folders: dict[str, str], **settings: Any) -> list[dict[str, str]]:
    """Rows of the metrics.csv that `evaluate` writes for the variants of a model."""
    files = ["inference", "evaluate", "data/letter_b", *(f"variants/{name}" for name in variants)]
    prepare("evaluate", files, dim, **folders, **settings).run()
    with (Path(folders["output_dir"]) / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


class Bench:
    """Trains each variant once, and only where a test asks for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = functools.cache(lambda dim: draw_cases(root / f"data_{dim}", dim))
        self.trained = functools.cache(self._train)
        self.evaluated = functools.cache(self._evaluate)

    def output(self, variant: str, dim: int) -> Path:
        return self.root / f"{variant}_{dim}"

    def _train(self, variant: str, dim: int) -> ConfigWorkflow:
        settings = {}
        if variant == "independent":
            self.trained("unet", dim)
            settings["unet_path"] = str(self.output("unet", dim) / "models" / "model.pt")
        folders = {"dataset_dir": str(self.data(dim)), "output_dir": str(self.output(variant, dim))}
        return train(variant, dim, folders, **settings)

    def state(self, variant: str, dim: int) -> dict[str, torch.Tensor]:
        """The model file."""
        self.trained(variant, dim)
        return torch.load(self.output(variant, dim) / "models" / "model.pt", weights_only=True)

    def _evaluate(self, variant: str, dim: int) -> list[dict[str, str]]:
        self.trained(variant, dim)
        output = self.output(variant, dim)
        paths = {"ckpt_path": str(output / "models" / "model.pt"), "output_dir": str(output / "test")}
        return evaluate([variant], dim, {"dataset_dir": str(self.data(dim)), **paths})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("variants")
    for dim in SIZES:
        (folder / f"data_{dim}").mkdir()
    return Bench(folder)


@pytest.mark.parametrize(("variant", "dim"), RUNS)
def test_every_variant_is_evaluated_by_the_results_that_it_has(bench: Bench, variant: str, dim: int) -> None:
    rows = bench.evaluated(variant, dim)
    assert [(row["case"], row["result"], row["label"]) for row in rows] == [
        ("case_3", result, "B") for result in RESULTS[variant]
    ]
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)

    case = bench.output(variant, dim) / "test" / "case_3"
    suffix = ".png" if dim == 2 else ".nii.gz"
    others = [] if variant in ("unet", "vml", "no_seg_loss") else ["itn", "one_pass"]
    written = sorted(path.name for path in case.glob(f"*{suffix}"))
    assert written == sorted(f"case_3_{name}{suffix}" for name in ["seg", *others])
    assert bool(list(case.glob("*.h5"))) == (variant != "unet")
    report = json.loads((case / "case_3.json").read_text())
    assert report["seconds"] > 0
    assert ("min_jacobian" in report) == (variant != "unet")
    assert ("loss_after" in report) == ("refine" in RESULTS[variant])

    write_report(case.parent, bench.data(dim))
    draw_results(bench.data(dim), case.parent)
    html = (case.parent / "report.html").read_text(encoding="utf-8")
    assert [name for name in ALL if f'class="c-{name}"' in html] == RESULTS[variant]
    assert (case.parent / "figure.png").is_file()


@pytest.mark.parametrize("variant", TRAINED)
def test_validation_measures_the_results_and_keeps_the_best_model(bench: Bench, variant: str) -> None:
    workflow = bench.trained(variant, 2)
    assert workflow.check_properties() == []
    validator = workflow.parser.get_parsed_content("validate#evaluator")
    assert set(validator.state.metrics) == {f"{name}_dice" for name in RESULTS[variant]}
    assert validator.state.key_metric_name == f"{RESULTS[variant][-1]}_dice"


@pytest.mark.parametrize("data", ["letter_b", "hippocampus"])
@pytest.mark.parametrize("base", [["train"], ["inference"], ["inference", "evaluate"]], ids="-".join)
@pytest.mark.parametrize("variant", RESULTS)
def test_a_variant_may_stand_before_or_behind_a_data_set(variant: str, base: list[str], data: str) -> None:
    overrides = [f"data/{data}", f"variants/{variant}"]
    behind, before = (
        ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in [*base, *order]])
        for order in (overrides, overrides[::-1])
    )
    assert behind == before


def test_a_unet_has_no_stn_and_no_atlas(bench: Bench) -> None:
    state = bench.state("unet", 2)
    assert not [name for name in state if name.startswith("stn.")]
    assert not state["atlas_labels"].any()
    assert not (bench.output("unet", 2) / "models" / "initial_atlas.pt").exists()
    loss = bench.trained("unet", 2).parser.get_parsed_content("loss")
    assert set(loss.terms) == {"segmentation"}


def test_the_segmentation_of_a_unet_is_what_its_itn_says(bench: Bench) -> None:
    bench.evaluated("unet", 2)
    # The workflow's own preprocessing; the image already has the size and spacing of the model.
    workflow = prepare("inference", ["inference", "data/letter_b"], 2, dataset_dir=str(bench.data(2)), amp=False)
    network = workflow.parser.get_parsed_content("itn").eval()
    state = bench.state("unet", 2)
    network.load_state_dict({k.removeprefix("itn."): v for k, v in state.items() if k.startswith("itn.")})
    image = workflow.parser.get_parsed_content("dataset")[0]["image"]
    with mixed_precision(image.device, wanted=True), torch.no_grad():
        expected = network(image[None].as_tensor())[0].argmax(dim=0)
    written = np.asarray(Image.open(bench.output("unet", 2) / "test" / "case_3" / "case_3_seg.png")).T
    assert (written == 255 * expected.numpy()).mean() > 0.99  # rounding to bf16 may tip a pixel


def test_vml_registers_images(bench: Bench) -> None:
    assert not [name for name in bench.state("vml", 2) if name.startswith("itn.")]
    loss = bench.trained("vml", 2).parser.get_parsed_content("loss")
    assert set(loss.terms) == {"a2s", "s2a", "regularisation"}
    network = bench.trained("vml", 2).parser.get_parsed_content("network").eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = network.register(image)[0]
        labels, picture = network.atlas_labels.clone(), network.atlas_image.clone()
        network.atlas_labels.zero_()
        unchanged = network.register(image)[0]
        network.atlas_image.zero_()
        changed = network.register(image)[0]
        network.atlas_labels.copy_(labels)
        network.atlas_image.copy_(picture)
    assert torch.equal(before, unchanged)
    assert not torch.equal(before, changed)


def test_without_segmentation_loss_the_itn_learns_from_the_registration(ring: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    # A head that is not near zero, as it is after some steps, lets gradients through.
    stn = SpatialTransformerNetwork(2, 2, (4, 8))
    torch.nn.init.normal_(stn.velocity_head.conv.weight, std=0.1)
    network = AtlasISTN(UNet(2, 1, 2, (4, 8), norm="batch"), stn, (24, 24), 2)
    network.atlas_labels.copy_(ring((24, 24)))
    labels = ring((24, 24), 2.0).expand(2, -1, -1, -1)
    gradients = {}
    for weight in (0.0, 1.0):
        loss = AtlasISTNLoss(network, segmentation_weight=weight, deformation_weight=1.0 - weight)
        network.zero_grad()
        parts = network.parts(torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0)))
        value = loss(parts, labels)
        gradients[weight] = torch.autograd.grad(value, parts["prediction"], retain_graph=True)[0]
        terms = loss.terms
        registration = terms["a2s"] + terms["s2a"] + loss.regularisation * terms["regularisation"]
        torch.testing.assert_close(value.detach(), registration if weight == 0 else terms["segmentation"])
    assert gradients[0.0].any()
    # The background channel takes no part in the registration.
    assert not gradients[0.0][:, 0].any()
    assert gradients[1.0][:, 0].any()


@pytest.mark.parametrize("data", ["letter_b", "hippocampus"])
def test_without_segmentation_loss_the_itn_has_batch_norm(data: str) -> None:
    files = ["inference", f"data/{data}", "variants/no_seg_loss"]
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in files]))
    layers = {type(layer).__name__ for layer in parser.get_parsed_content("itn").modules()}
    assert [name for name in layers if "Norm" in name] == ["BatchNorm2d" if data == "letter_b" else "BatchNorm3d"]


def test_without_segmentation_loss_it_counts_for_nothing_in_training(bench: Bench) -> None:
    assert bench.trained("no_seg_loss", 2).parser.get_parsed_content("loss").segmentation_weight == 0


def test_a_fixed_atlas_is_a_training_case_and_never_moves(bench: Bench, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(bench.data(2)), "output_dir": str(tmp_path)}
    workflow = train("fixed_atlas", 2, folders, atlas_case="case_1", max_epochs=2)
    case = workflow.parser.get_parsed_content("train#dataset")[1]
    for state in (workflow.parser.get_parsed_content("network").state_dict(), load(tmp_path)):
        torch.testing.assert_close(state["atlas_labels"][0], torch.as_tensor(case["label"]), rtol=0, atol=1e-6)
        torch.testing.assert_close(state["atlas_image"][0], torch.as_tensor(case["image"]), rtol=0, atol=1e-6)


def load(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / "model.pt", weights_only=True)


def test_the_fixed_atlas_is_the_first_training_case_by_default(bench: Bench) -> None:
    case = bench.trained("fixed_atlas", 2).parser.get_parsed_content("train#dataset")[0]
    atlas = bench.state("fixed_atlas", 2)["atlas_labels"][0]
    torch.testing.assert_close(atlas, torch.as_tensor(case["label"]), rtol=0, atol=1e-6)


def test_a_fixed_atlas_that_is_no_training_case_is_refused(bench: Bench, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(bench.data(2)), "output_dir": str(tmp_path)}
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI wraps what the run raises)
        train("fixed_atlas", 2, folders, atlas_case="case_3")
    assert "atlas_case case_3: the training list has no case of this name" in str(input_error_behind(caught.value))


def test_svf_only_has_no_affine_part(bench: Bench) -> None:
    network = bench.trained("svf_only", 2).parser.get_parsed_content("network").eval()
    network.load_state_dict(bench.state("svf_only", 2))
    with torch.no_grad():
        network.stn.affine_head[-1].bias.fill_(0.3)  # whatever the head says
    for mode in ("field", "weights"):
        inferer = RefinementInferer(mode, iterations=5)
        transform = inferer.infer(torch.rand(1, 1, 32, 32), network).transform
        assert torch.equal(transform.affine[0], torch.eye(2, 3))
        assert transform.velocity.any()


@pytest.mark.parametrize("dim", [2, 3])
def test_independent_joins_a_trained_unet_a_new_stn_and_a_training_case(bench: Bench, dim: int) -> None:
    unet, state = bench.state("unet", dim), bench.state("independent", dim)
    itn = [name for name in state if name.startswith("itn.")]
    assert itn == [name for name in unet if name.startswith("itn.")]
    assert all(torch.equal(state[name], unet[name]) for name in itn)
    stn = {name.removeprefix("stn."): value for name, value in state.items() if name.startswith("stn.")}
    assert not stn["affine_head.2.weight"].any()  # as it is before any training
    assert state["affine_gate"] == 1
    case = bench.trained("independent", dim).parser.get_parsed_content("train#dataset")[0]
    torch.testing.assert_close(state["atlas_labels"][0], torch.as_tensor(case["label"]), rtol=0, atol=1e-6)


def test_independent_refines_the_weights_of_the_stn_100_times(bench: Bench) -> None:
    files = ["inference", "data/letter_b", "variants/independent"]
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in files]))
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.mode, inferer.iterations) == ("weights", 100)
    bench.evaluated("independent", 2)
    report = json.loads((bench.output("independent", 2) / "test" / "case_3" / "case_3.json").read_text())
    assert report["loss_after"] < report["loss_before"]


def test_independent_names_a_unet_that_is_not_there(bench: Bench, tmp_path: Path) -> None:
    folders = {"dataset_dir": str(bench.data(2)), "output_dir": str(tmp_path)}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        train("independent", 2, folders, unet_path=str(tmp_path / "unet.pt"))
    assert "unet.pt: no such checkpoint" in str(input_error_behind(caught.value))


@pytest.mark.parametrize("over", [["unet"], []], ids=["unet", "whole"])
def test_unet1cc_keeps_the_largest_component_of_a_label(over: list[str], dim: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    dataset_dir = str(draw_cases(tmp_path / "data", dim, islands=True))
    # An ITN that reads the label off the intensity finds the islands too.
    settings = {"itn": f"$torch.nn.Conv{dim}d(1, 2, 1)", "ckpt_path": str(tmp_path / "model.pt")}
    files = ["inference", "data/letter_b", *(f"variants/{name}" for name in over)]
    network = prepare("inference", files, dim, **settings).parser.get_parsed_content("network")
    with torch.no_grad():
        network.itn.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(network.itn.weight.shape))
        network.itn.bias.copy_(torch.tensor([1.0, 0.0]))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    maps, components = [], []
    for variants in (over, [*over, "unet1cc"]):
        output = tmp_path / "-".join(["results", *variants])
        rows = evaluate(variants, dim, {"dataset_dir": dataset_dir, "output_dir": str(output)}, **settings)
        components += [row["components"] for row in rows if row["result"] == "itn"]
        path = next((output / "case_3").glob(f"case_3_{'seg' if over else 'itn'}.*"))
        maps.append(np.asarray(Image.open(path) if dim == 2 else nib.load(path).dataobj) > 0)
    assert components == ["3", "1"]
    # Islands went, nothing came, and what stays is the greater part.
    assert not (maps[1] & ~maps[0]).any()
    assert 0.5 < maps[1].sum() / maps[0].sum() < 1


@pytest.mark.parametrize("missing", ["itn", "stn"])
def test_a_network_of_one_part_is_scriptable(dim: int, missing: str, ring: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"itn": UNet(dim, 1, 2, (4, 8)), "stn": SpatialTransformerNetwork(dim, 2, (4, 8))}
    network = AtlasISTN(**{**parts, missing: None}, spatial_size=SIZES[dim], num_classes=2).eval()
    network.atlas_labels.copy_(ring(tuple(SIZES[dim])))
    image = torch.rand(2, 1, *SIZES[dim])
    with torch.no_grad():
        expected = network(image)
        assert expected.shape == (2, 2, *SIZES[dim])
        torch.testing.assert_close(torch.jit.script(network)(image), expected)
