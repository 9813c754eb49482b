# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What long benchmarks share: each command is run once, and it is known what it took."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas_istn.io.outputs import write_json

__all__ = ["CONFIGS", "ROOT", "Runner"]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = "bundle/configs"
INTERVAL = 1.0  # seconds between two looks at what runs


class Runner:
    """Runs commands in the root of the repository, each once.

    Args:
        folder: of the logs and the times. Where a file ``NAME.json`` is, the command is done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, *command: str) -> float:
        """Run a module of this Python unless it has been run, see `execute`."""
        return self.execute(name, [sys.executable, "-m", *command])

    def bundle(self, name: str, run_id: str, configs: Sequence[str], **settings: Any) -> float:
        """Run a workflow of the bundle, see `execute`."""
        overrides = [f"--{key}={value}" for key, value in settings.items()]
        return self.run(name, "monai.bundle", "run", run_id, "--config_file", str(list(configs)), *overrides)

    def execute(self, name: str, command: Sequence[str]) -> float:
        """Run a command unless it has been run.

        Returns:
            Seconds of processor time that it took, those of attempts that were stopped included.

        Raises:
            SystemExit: it failed.
        """
        done, spent, log_path = (self.folder / f"{name}.{suffix}" for suffix in ("json", "spent", "log"))
        if not done.exists():
            print(f"{time.strftime('%H:%M:%S')} {self.folder.name}: {name}", flush=True)
            before = float(spent.read_text(encoding="utf-8")) if spent.exists() else 0.0
            begin = time.monotonic()
            with log_path.open("a", encoding="utf-8") as log:
                process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                spent.write_text(str(before + _processor_seconds(process.pid)), encoding="utf-8")
                time.sleep(INTERVAL)
            seconds = before + usage.ru_utime + usage.ru_stime
            spent.write_text(str(seconds), encoding="utf-8")
            if status:
                raise SystemExit(f"failed, see {log_path}: {shlex.join(command)}")
            times = {"seconds": seconds, "wall_seconds": time.monotonic() - begin}
            write_json({"command": shlex.join(command), **times}, done)
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])


def _processor_seconds(process: int) -> float:
    """What a running process has taken so far; 0 where the system does not tell, or it has just ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
