# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The bundle as hosts see it, training in several processes, and what the first page promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

import atlas_istn
import atlas_istn.errors
from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.models.export import export_itn, load_network
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
SCHEMA = ROOT.parent / "shared" / "tools" / "meta_schema_20240725.json"
SHAPE = (48, 64, 48)
SMALL = {
    "spatial_size": [32, 32],
    "spacing": [2.0, 2.0],
    "itn_member#filters": [4, 8, 8],
    "itn_kernels": [3] * 3,
    "itn_strides": [1, 2, 2],
    "stn#channels": [8, 16],
    "batch_size": 2,
    "refine_iterations": 2,
    "max_epochs": 1,
    "val_interval": 1,
}


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflows replace it; pytest should find its own again."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 training cases, so that two processes get unequal shares."""
    folder = tmp_path_factory.mktemp("letter_b")
    generate_letter_b(folder, num_training=5, num_validation=3, num_test=1, num_corrupt=1, size=64)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the shipped configuration that were never trained; an atlas of two boxes."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    classes = torch.zeros(SHAPE, dtype=torch.long)
    classes[16:32, 32:48, 16:32], classes[16:32, 16:32, 16:32] = 1, 2
    network.atlas_labels.copy_(torch.nn.functional.one_hot(classes, 3).movedim(-1, 0)[None])
    with torch.no_grad():
        for weight in network.stn.parameters():  # they start out as the identity
            weight.add_(0.05 * torch.randn_like(weight))
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def metadata() -> dict:
    return json.loads((CONFIGS / "metadata.json").read_text())


def train_workflow(dataset_dir: Path, output_dir: Path) -> ConfigWorkflow:
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "data" / "letter_b.yaml")]
    folders = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **folders, **SMALL)
    workflow.initialize()
    return workflow


def test_metadata_fits_the_schema():
    if not SCHEMA.is_file():
        pytest.skip(f"no metadata schema beside the project ({SCHEMA.name})")
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_describes_input_and_output_of_the_network():
    files = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.yaml")}
    verify_net_in_out(net_id="network_def", device="cpu", **files)


def test_torchscript_gives_the_same_segmentation(model, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(model),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.yaml")],
    )
    network, image = load_network(CONFIGS / "inference.yaml", model).eval(), torch.rand(1, 1, *SHAPE)
    scripted = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        expected = network(image)
        assert float((expected - network.atlas_labels).abs().max()) > 0.1  # it has moved the atlas
        torch.testing.assert_close(scripted(image), expected, atol=1e-5, rtol=0)  # the same float32 operations


def test_onnx_gives_the_same_prediction(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_itn(str(tmp_path / "itn.onnx"), str(CONFIGS / "inference.yaml"), str(model))
    session = onnxruntime.InferenceSession(tmp_path / "itn.onnx")
    network = load_network(CONFIGS / "inference.yaml", model).eval()
    for batch in (1, 2):
        image = torch.rand(batch, 1, *SHAPE)
        with torch.no_grad():
            expected = network.segment(image)
        (prediction,) = session.run(None, {"image": image.numpy()})
        # Sums over thousands of float32 numbers in another order.
        torch.testing.assert_close(torch.from_numpy(prediction), expected, atol=1e-4, rtol=0)


def test_metadata_has_the_version_of_the_package(metadata):
    assert metadata["version"] == atlas_istn.__version__
    assert metadata["version"] in metadata["changelog"]
    assert f"## [{atlas_istn.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_metadata_names_the_versions_that_were_tested(metadata):
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    own = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"], "numpy": metadata["numpy_version"]}
    assert {name: pins[name] for name in own} == own
    required = metadata["required_packages_version"]
    assert {name: pins[name] for name in required} == required
    listed = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("]")[0]
    assert set(re.findall(r'"([\w-]+)', listed)) == {*required, *own} - {"numpy"}


def test_metadata_describes_the_network_of_the_config(metadata):
    config = yaml.safe_load((CONFIGS / "inference.yaml").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    prediction = metadata["network_data_format"]["outputs"]["pred"]
    assert image["spatial_shape"] == prediction["spatial_shape"] == config["spatial_size"]
    assert image["num_channels"] == config["in_channels"]
    assert prediction["num_channels"] == len(config["label_names"])
    assert {int(k): v for k, v in prediction["channel_def"].items()} == config["label_names"]


def test_training_has_the_properties_of_a_bundle(letters, tmp_path):
    assert train_workflow(letters, tmp_path).check_properties() == []


def test_inference_has_the_properties_of_a_bundle(letters):
    workflow = ConfigWorkflow(
        str(CONFIGS / "inference.yaml"), logging_file=False, workflow_type="infer", dataset_dir=str(letters)
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_options_of_a_client_reach_the_inferer():
    """MONAI Label replaces the values of `displayable_configs` and parses the config again."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    shown = parser.get_parsed_content("displayable_configs")
    config = yaml.safe_load((CONFIGS / "inference.yaml").read_text())
    own = {"refine_iterations": config["refine_iterations"], "refine_mode": config["refine_mode"]}
    assert shown == {**own, "refine_lambda": config["refine_weights"]["lambda"]}
    parser["displayable_configs"].update({"refine_iterations": 3, "refine_mode": "weights", "refine_lambda": 0.7})
    parser.parse()
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.iterations, inferer.mode, inferer.regularisation) == (3, "weights", 0.7)


def test_two_processes_count_each_case_once(letters, tmp_path):
    settings = {**SMALL, "dataset_dir": str(letters), "output_dir": str(tmp_path / "two")}
    configs = [str(CONFIGS / name) for name in ("train.yaml", "data/letter_b.yaml", "multi_gpu_train.yaml")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # gloo, also where there are GPUs
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "two" / "models" / "model.pt").is_file()

    workflow = train_workflow(letters, tmp_path / "one")
    cases = workflow.parser.get_parsed_content("train#dataset")
    mean = torch.stack([torch.as_tensor(case["label"]) for case in cases]).mean(dim=0)
    atlas = torch.load(tmp_path / "two" / "models" / "initial_atlas.pt", weights_only=True)
    # Sums of 5 float32 numbers in another order.
    torch.testing.assert_close(atlas["labels"][0], mean, atol=1e-6, rtol=0)


def shell_commands(text: str) -> str:
    """Commands on one line each, single spaces, variables of the script replaced."""
    for name, value in re.findall(r"^(\w+)=(\S+)$", text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    return re.sub(r" +", " ", text.replace("\\\n", " "))


def test_quickstart_runs_the_commands_of_the_readme():
    section = (ROOT / "README.md").read_text().split("## First run")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    commands = [line for line in shell_commands(block.group(1)).splitlines() if line]
    assert len(commands) == 6
    script = shell_commands(shell_commands((ROOT / "quickstart.sh").read_text()))  # twice: values hold variables
    missing = [command for command in commands if command not in script]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "bundle/docs/README.md"])
def test_links_of_a_page_lead_to_files(page):
    targets = re.findall(r"\]\(([^):#]+)\)", (ROOT / page).read_text())
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_continuous_integration_can_be_started():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_module_has_the_licence_header():
    modules = [path for folder in ("custom", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    header = "\n".join(Path(atlas_istn.errors.__file__).read_text().splitlines()[:2])
    assert [str(path) for path in modules if not path.read_text().startswith(header)] == []
