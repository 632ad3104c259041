# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import mlacat  # noqa: E402
from daemon import Daemon  # noqa: E402


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))


@pytest.fixture(scope="session")
def shared_daemon():
    daemon = Daemon("--device", "auto")
    yield daemon
    daemon.close()


@pytest.fixture(autouse=True)
def default_client(shared_daemon):
    """The functions of the package use the shared daemon."""
    mlacat.configure(socket=shared_daemon.socket, name="gpu test")
    yield
    torch.cuda.synchronize()
    mlacat.default_client().check()
    mlacat.configure()


@pytest.fixture
def daemon():
    """One of the test's own, to be killed and restarted."""
    daemon = Daemon("--device", "auto")
    yield daemon
    daemon.close()
