# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""One process at a time in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_istn.errors import InputError
from atlas_istn.io.locks import hold_folder, release_folder

HOLDER = """
import os, sys, time
from atlas_istn.io.locks import hold_folder
hold_folder(sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_another_process_is_refused_until_the_folder_is_released(tmp_path: Path) -> None:
    hold_folder(tmp_path / "run")
    hold_folder(tmp_path / "run")  # the same process may ask again
    other = "import sys; from atlas_istn.io.locks import hold_folder; hold_folder(sys.argv[1])"
    command = [sys.executable, "-c", other, str(tmp_path / "run")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "another run is writing into this folder" in refused.stderr
    release_folder(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert subprocess.run(command, check=False).returncode == 0
    assert list((tmp_path / "run").iterdir()) == []  # it let go when it ended


def test_a_killed_process_locks_nobody_out_even_if_its_children_live_on(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with pytest.raises(InputError, match="another run"):
            hold_folder(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        try:
            time.sleep(0.1)
            hold_folder(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)
    release_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        hold_folder(tmp_path / "file")
