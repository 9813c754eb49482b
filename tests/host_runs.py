# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The hosts of a bundle, as tests run them: MONAI Label, MONAI Deploy, and MONAI's own command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

from support import ROOT

LABEL = ROOT / "deploy" / "monai_label"
LABEL_ENVIRONMENT = Path(os.environ.get("ATLAS_ISTN_LABEL_ENV", LABEL / ".venv"))
needs_label = pytest.mark.skipif(
    not (LABEL_ENVIRONMENT / "bin" / "python").is_file(),
    reason=f"no environment of MONAI Label in {LABEL_ENVIRONMENT}: run deploy/monai_label/setup.sh",
)
DEPLOY = ROOT / "deploy" / "monai_deploy"
DEPLOY_PYTHON = Path(os.environ.get("ATLAS_ISTN_DEPLOY_PYTHON", DEPLOY / ".venv" / "bin" / "python"))
START = 300  # seconds; on a busy machine the imports alone take a minute
ANSWER = 300


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asanyarray(image.dataobj).astype(int)


def run_inference(bundle: Path, dataset_dir: Path, output_dir: Path) -> Path:
    """`python -m monai.bundle run inference` of a bundle; returns the output folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs" / "inference.yaml")]
    command += ["--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return output_dir


# MONAI Label


def make_app(bundle: Path, folder: Path, model: str) -> Path:
    """Pack a bundle under the name of a model, and make an app of MONAI Label with it."""
    packed = folder / f"{model}.zip"
    subprocess.run([sys.executable, "-m", "atlas_istn", "pack", str(bundle), str(packed)], check=True)
    script = [str(LABEL_ENVIRONMENT / "bin" / "python"), str(LABEL / "make_app.py")]
    subprocess.run([*script, str(packed), str(folder / "monaibundle")], check=True)
    return folder / "monaibundle"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], address: str, log: Path, **environment: str) -> Iterator[int]:
    """A process that answers at an address; it and its children are gone afterwards, whatever happens."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START
        while not _answers(address):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, f"no answer in {START} s: {log.read_text()[-3000:]}"
            time.sleep(1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


class Server:
    """What a client asks for."""

    def __init__(self, address: str, process: int, app: Path, model: str) -> None:
        self.address = address
        self.process = process
        self.model = model
        self.weights = app / "model" / model / "models" / "model.pt"

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return requests.request(method, f"{self.address}/{path}", timeout=ANSWER, **arguments)

    def infer(self, image: str, **options: Any) -> requests.Response:
        query, form = {"image": image, "output": "image"}, {"params": json.dumps({"device": "cpu", **options})}
        return self.ask("POST", f"infer/{self.model}", params=query, data=form)

    def segment(self, image: str, folder: Path, **options: Any) -> nib.Nifti1Image:
        answer = self.infer(image, **options)
        assert answer.status_code == 200, answer.text
        path = folder / f"{image}_{len(list(folder.iterdir()))}.nii.gz"
        path.write_bytes(answer.content)
        return nib.load(path)

    def peak_memory(self) -> float:
        """In GB."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1e6


@contextmanager
def serving(app: Path, studies: str, model: str) -> Iterator[Server]:
    """A server of MONAI Label with the app, which has the model."""
    port = free_port()
    log = app.parent / f"server_{port}.log"
    address = f"http://127.0.0.1:{port}"
    command = ["bash", str(LABEL / "start.sh"), studies, str(port)]
    places = {"ATLAS_ISTN_LABEL_ENV": str(LABEL_ENVIRONMENT), "ATLAS_ISTN_LABEL_APP": str(app.parent)}
    with running(command, f"{address}/info/", log, **places) as process:
        yield Server(address, process, app, model)


# MONAI Deploy


def run_in_deploy(command: list[Any], **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment of MONAI Deploy."""
    if not DEPLOY_PYTHON.is_file():
        pytest.skip("no environment of MONAI Deploy: run deploy/monai_deploy/run.sh or set ATLAS_ISTN_DEPLOY_PYTHON")
    cuda = next(DEPLOY_PYTHON.parents[1].glob("lib/python*/site-packages/nvidia/cu13/lib"), Path())
    variables = {"LD_LIBRARY_PATH": cuda, "OMP_NUM_THREADS": 1, **variables}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)


def run_app(study: Path, output: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run the application of MONAI Deploy on a study."""
    return run_in_deploy([DEPLOY_PYTHON, DEPLOY / "app.py", "-i", study, "-o", output, "-m", bundle])
