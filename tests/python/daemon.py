# SPDX-License-Identifier: Apache-2.0
"""A daemon in a folder of its own. MLACAT_BUILD names the build, or the folder, whose programs are used."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any


def program(name: str) -> str:
    build = pathlib.Path(os.environ.get("MLACAT_BUILD", "."))
    for path in (build / name, build / "server" / name, build / "client" / "ctl" / name):
        if path.is_file():
            return str(path.resolve())
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is neither in MLACAT_BUILD ({build}) nor on the path")
    return found


_prctl = ctypes.CDLL(None).prctl


def end_with_parent() -> None:
    """For preexec_fn: the child does not outlive this process, however that ends (PR_SET_PDEATHSIG)."""
    _prctl(1, signal.SIGKILL)


class Daemon:
    def __init__(self, *options: str, env: dict[str, str] | None = None, mlacatd: str | None = None) -> None:
        self.mlacatd = mlacatd or program("mlacatd")
        self.folder = tempfile.mkdtemp(prefix="mlacat-")
        self.socket = f"{self.folder}/socket"
        self.options = options
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(
                [self.mlacatd, "--socket", self.socket, *self.options],
                stdout=log,
                stderr=log,
                env=self.env,
                preexec_fn=end_with_parent,
            )
        deadline = time.monotonic() + 40
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mlacatd did not start:\n{self.log()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Ready, with a device that works: the socket is there before that."""
        env = {**self.env, "MLACAT_SOCKET": self.socket}
        return subprocess.run([program("mlacatctl"), "ping"], env=env, capture_output=True).returncode == 0

    def stats(self) -> dict[str, Any]:
        """What mlacatctl stats tells of it."""
        env = {**self.env, "MLACAT_SOCKET": self.socket}
        command = [program("mlacatctl"), "stats", "--json"]
        return json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)

    def log(self) -> str:
        return pathlib.Path(self.folder, "log").read_text()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.send(number)
        return self.process.wait(timeout=20)

    def restart(self) -> None:
        self.stop(signal.SIGKILL)
        self.start()

    def close(self) -> None:
        status = self.stop()
        shown = self.log()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert status == 0, f"mlacatd ended with {status}:\n{shown}"
