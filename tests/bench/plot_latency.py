#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots the latencies of `mlacatctl bench --json`: quantiles of each row that is a time, on a logarithmic scale.

    mlacatctl bench --json >bench.json
    plot_latency.py bench.json --out latency.svg [--only PATTERN]

    plot_latency.py --selftest
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
import xml.etree.ElementTree
from typing import Any, Sequence

import svg_plot

QUANTILES = ("p50", "p90", "p99", "p99.9")


def latencies(rows: Sequence[dict[str, Any]], pattern: str) -> list[svg_plot.Series]:
    """The rows in microseconds that were measured and whose name has the pattern in it."""
    return [
        svg_plot.Series(row["name"], [row.get(quantile) for quantile in QUANTILES])
        for row in rows
        if row.get("unit") == "us" and row.get("p50") is not None and re.search(pattern, row["name"])
    ]


def plot(rows: Sequence[dict[str, Any]], pattern: str) -> str:
    """The page; ValueError if there is nothing to plot."""
    series = latencies(rows, pattern)
    if not series:
        raise ValueError("no row is a time that was measured and has the pattern in its name")
    steps = [name for index, name in enumerate(QUANTILES) if any(one.values[index] is not None for one in series)]
    cut = [svg_plot.Series(one.name, [one.values[QUANTILES.index(step)] for step in steps]) for one in series]
    return svg_plot.log_lines("Latency", "share of the calls that took at most so many microseconds", steps, cut)


def selftest() -> int:
    """Raises AssertionError where something is wrong."""
    rows = [
        {"name": "message.latency", "unit": "us", "p50": 12.4, "p90": 13.0, "p99": 37.5, "samples": 9},
        {"name": "ring.latency", "unit": "us", "p50": 1.2, "p90": 1.4, "p99": 3.0, "p99.9": 20.0, "samples": 9},
        {"name": "host.k", "unit": "B/s", "p50": 3e10, "p90": 3e10, "p99": 3e10, "samples": 9},
        {"name": "ring.absent", "unit": "us", "p50": None, "samples": 0},
    ]
    assert [one.name for one in latencies(rows, "")] == ["message.latency", "ring.latency"]
    assert [one.name for one in latencies(rows, "^ring")] == ["ring.latency"]
    root = xml.etree.ElementTree.fromstring(plot(rows, ""))
    lines = [line.get("points", "").split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [3, 4]
    heights = [float(point.split(",")[1]) for point in lines[1]]
    assert heights == sorted(heights, reverse=True), "longer is higher"
    three = xml.etree.ElementTree.fromstring(plot(rows[:1], ""))
    assert "p99.9" not in "".join(three.itertext())
    print("all right")
    return 0


def main() -> int:
    """Parses and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", help="what mlacatctl bench --json printed")
    parser.add_argument("--out", default="latency.svg", help="the plot")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name has this regular expression")
    parser.add_argument("--selftest", action="store_true", help="check the plot with made-up rows")
    options = parser.parse_args()
    if options.selftest:
        return selftest()
    if not options.json:
        parser.error("name the file that mlacatctl bench --json wrote")
    rows = json.loads(pathlib.Path(options.json).read_text())
    try:
        pathlib.Path(options.out).write_text(plot(rows, options.only))
    except ValueError as why:
        print(f"plot_latency.py: {options.json}: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
