# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

import mlacat
from daemon import Daemon


@pytest.fixture(scope="session")
def shared_daemon():
    daemon = Daemon("--device", "host")
    yield daemon
    daemon.close()


@pytest.fixture
def daemon():
    """One of the test's own, to be killed and restarted."""
    daemon = Daemon("--device", "host")
    yield daemon
    daemon.close()


@pytest.fixture
def client(shared_daemon):
    with mlacat.Client(shared_daemon.socket, "python test") as client:
        yield client


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """is_available() gives a daemon that answers more time than a user would: the machine may be slow."""
    monkeypatch.setattr(mlacat._client, "ANSWER_MS", 30000)


@pytest.fixture
def as_default(monkeypatch):
    """as_default(daemon or path): the functions of the package use that one."""

    def use(daemon, **options):
        path = daemon if isinstance(daemon, str) else daemon.socket
        mlacat.configure(socket=path, **options)

    monkeypatch.delenv("MLACAT_DISABLE", raising=False)
    monkeypatch.delenv("MLACAT_FALLBACK", raising=False)
    yield use
    mlacat.configure()


@pytest.fixture
def rest(monkeypatch):
    """rest(seconds): how long each rest from a lost daemon is."""

    def set_rest(seconds):
        monkeypatch.setattr(mlacat._functions, "REST_SECONDS", seconds)
        monkeypatch.setattr(mlacat._functions, "REST_SECONDS_MOST", seconds)

    return set_rest


def pytest_terminal_summary(terminalreporter):
    """Counts as cmocka programs print them, for tests/tally.awk."""
    stats = terminalreporter.stats
    nr = {kind: len(stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    terminalreporter.write_line("")
    terminalreporter.write_line(f"[  PASSED  ] {nr['passed']} test(s).")
    if nr["skipped"]:
        terminalreporter.write_line(f"[  SKIPPED ] {nr['skipped']} test(s), listed below:")
        for report in stats["skipped"]:
            terminalreporter.write_line(f"[  SKIPPED ] {report.nodeid.rpartition('::')[2]}")
    if nr["failed"] + nr["error"]:
        terminalreporter.write_line(f"[  FAILED  ] {nr['failed'] + nr['error']} test(s), listed above.")
