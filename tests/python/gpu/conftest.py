# SPDX-License-Identifier: Apache-2.0
"""Fixtures, and a ledger of the run (MLACAT_LEDGER: its folder) that is complete whatever happens to this process.

A test has 60 seconds, or what its mark `limit` says. One that takes longer ends the process, with all stacks in
stacks.txt; so does one after which CUDA is of no use. run.sh then starts another, which goes on after it.
"""

from __future__ import annotations

import faulthandler
import os
import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import mlacat  # noqa: E402
from daemon import Daemon  # noqa: E402

LIMIT_SECONDS = 60
# The daemons of a run together take less of the connections to the GPU that processes share under MPS.
DAEMON_ENV = {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}
# Memory that its owner frees is the GPU's again after this long; docs/python.md says so.
BACK_SECONDS = 0.3


class Ledger:
    """What ran: START, then an outcome, then DONE for each test; END when none was left."""

    def __init__(self, folder: str) -> None:
        self.folder = pathlib.Path(folder)
        self.path = self.folder / "ledger"
        self.stacks = open(self.folder / "stacks.txt", "a")
        lines = [line.split(" ", 2) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        done = {line[-1] for line in lines if line[0] == "DONE"}
        started = [line[-1] for line in lines if line[0] == "START"]
        self.ran = set(started)
        for name in started:
            if name not in done:  # the last attempt ended in it
                self.write("failed", "timeout-or-crash", name)
                self.write("DONE", "-", name)
                self.tell_failure(name, self.stacks_of_before())

    def stacks_of_before(self) -> str:
        return "it did not end, or took the process with it; stacks.txt has:\n" + (
            (self.folder / "stacks.txt").read_text()[-4000:]
        )

    def write(self, *words: str) -> None:
        with open(self.path, "a") as file:
            print(*words, file=file)

    def tell_failure(self, name: str, text: str) -> None:
        with open(self.folder / "failures", "a") as file:
            print(f"==== {name}\n{text}\n", file=file)


ledger = Ledger(os.environ["MLACAT_LEDGER"]) if "MLACAT_LEDGER" in os.environ else None
daemons: list[Daemon] = []
broken: list[str] = []  # why this process cannot go on


def pytest_configure(config):
    config.addinivalue_line("markers", f"limit(seconds): how long the test may take, in place of {LIMIT_SECONDS}")


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))
    if ledger is not None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in ledger.ran])
        items[:] = [item for item in items if item.nodeid not in ledger.ran]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    mark = item.get_closest_marker("limit")
    if ledger is not None:
        ledger.write("START", "-", item.nodeid)
        faulthandler.dump_traceback_later(mark.args[0] if mark else LIMIT_SECONDS, exit=True, file=ledger.stacks)
    result = yield
    if ledger is not None:
        faulthandler.cancel_dump_traceback_later()
        ledger.write("DONE", "-", item.nodeid)
    if broken:
        pytest.exit(broken[0], returncode=3)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for daemon in daemons:
            report.sections.append((f"mlacatd {daemon.socket}, the end of its log", daemon.log()[-3000:]))
        free, all_bytes = memory()
        report.sections.append(("memory", f"{free >> 20} of {all_bytes >> 20} MiB are free; torch holds {reserved()}"))
    return report


def pytest_runtest_logreport(report):
    if ledger is None or (report.when != "call" and report.outcome == "passed"):
        return
    ledger.write(report.outcome, f"{report.when}:{report.duration:.2f}s", report.nodeid)
    if report.failed:
        sections = "\n".join(f"---- {name}\n{text}" for name, text in report.sections)
        ledger.tell_failure(report.nodeid, f"{report.longreprtext}\n{sections}")


def pytest_sessionfinish(session, exitstatus):
    if ledger is not None and not broken:
        ledger.write("END", "-", str(int(exitstatus)))


# ---------------------------------------------------------------------------------------------------- daemons


def start_daemon():
    daemon = Daemon("--device", "auto", env=DAEMON_ENV)
    daemons.append(daemon)
    return daemon


def end_daemon(daemon):
    daemons.remove(daemon)
    daemon.close()


@pytest.fixture(scope="session")
def shared_daemon():
    daemon = start_daemon()
    yield daemon
    end_daemon(daemon)


@pytest.fixture(scope="session")
def connection(shared_daemon):
    """One for all tests: connecting and its end cost the daemon pages of rings."""
    mlacat.configure(socket=shared_daemon.socket, name="gpu test")
    yield
    mlacat.configure()


@pytest.fixture(autouse=True)
def default_client(shared_daemon, connection):
    """The functions of the package use the shared daemon. No test leaves it a failed stream."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        broken.append(f"CUDA is of no use after this test: {error}")
        raise
    status = shared_daemon.process.poll()
    if status is not None:
        shared_daemon.start()
        pytest.fail(f"mlacatd ended with {status} under this test")
    mlacat.default_client().check()


@pytest.fixture
def daemon():
    """One of the test's own, to be killed and restarted."""
    daemon = start_daemon()
    yield daemon
    end_daemon(daemon)


# ---------------------------------------------------------------------------------------------------- memory


def memory():
    """Free bytes of the GPU, whoever holds the rest, and all of them."""
    try:
        return torch.cuda.mem_get_info()
    except RuntimeError:
        return 0, 0


def reserved():
    return torch.cuda.memory_reserved() if not broken else 0


def give_back():
    """Lets torch give its unused memory back and waits until nobody holds it any more; how many seconds that took.

    The end is seen by free memory that stays the same for a quarter of a second.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    began = changed = time.monotonic()
    free = memory()[0]
    while time.monotonic() - changed < 0.25:
        time.sleep(0.005)
        now = memory()[0]
        if now != free:
            free, changed = now, time.monotonic()
        assert time.monotonic() - began < 10, f"after 10 s the free memory still changes: {free >> 20} MiB"
    return changed - began


@pytest.fixture
def whole_gpu():
    """For tests that take much memory: what others left is given back before, and this one's after."""
    give_back()
    yield
    give_back()
