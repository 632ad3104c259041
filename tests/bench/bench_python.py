# SPDX-License-Identifier: Apache-2.0
"""What a call of concat_mla_k from Python costs over the same call through the C library, on the host device.

    sh tests/with_daemon.sh BUILD PYTHON tests/bench/bench_python.py BUILD/tests/bench/bench_call

PYTHON has the wheel and numpy (BUILD/python-venv/bin/python after the test python_host). The two take turns; the
median of the rounds counts. Exit status 1: the difference is more than 2 us.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import mlacat

TOKENS, HEADS, TURNS, ROUNDS, CALLS = 1, 1, 7, 50, 400
LIMIT_US = 2.0


def c_us() -> float:
    words = [sys.argv[1], *map(str, (TOKENS, HEADS, ROUNDS, CALLS))]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1000


def python_us(call) -> float:
    seen = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        seen.append((time.perf_counter_ns() - began) / CALLS / 1000)
    return statistics.median(seen)


def main() -> int:
    client = mlacat.default_client()
    k = client.empty((TOKENS, HEADS, 192))
    k_nope = client.empty((TOKENS, HEADS, 128))
    k_rope = client.empty((TOKENS, 1, 64))
    ways = {
        "C library": c_us,
        "Python": lambda: python_us(lambda: mlacat.concat_mla_k(k, k_nope, k_rope)),
        "Python, zero tokens": lambda: python_us(lambda: mlacat.concat_mla_k(k[:0], k_nope[:0], k_rope[:0])),
    }
    turns = [{name: measure() for name, measure in ways.items()} for _ in range(TURNS)]
    figures = {name: statistics.median(turn[name] for turn in turns) for name in ways}
    for name, value in figures.items():
        print(f"{name:<24}{value:8.2f} us")
    over = figures["Python"] - figures["C library"]
    print(f"{'over the C library':<24}{over:8.2f} us   goal under {LIMIT_US}: {'MISS' if over > LIMIT_US else 'pass'}")
    return int(over > LIMIT_US)


if __name__ == "__main__":
    sys.exit(main())
