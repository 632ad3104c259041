#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots the latencies of `mlacatctl bench --histogram`: for each row and its reference the share of the calls that took
longer than so many microseconds, both axes logarithmic, so that p50, p90, p99 and p99.9 are equal steps.

    mlacatctl bench --filter ring.latency --histogram histogram.json
    plot_latency.py histogram.json --out latency.svg [--only PATTERN]

    plot_latency.py --selftest MLACATCTL      beside a daemon
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from typing import Any, Sequence

import svg_plot

# The lowest is where the plot ends.
MARKS = (("p0", 1.0), ("p50", 0.5), ("p90", 0.1), ("p99", 0.01), ("p99.9", 0.001), ("p99.99", 0.0001))
BUCKET_RATIO = 2 ** (1 / 16)


def exceeding(buckets: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The share of the calls that took longer than each bucket's longest time, down to where the plot ends."""
    total = sum(count for _, count in buckets)
    left = total
    points = []
    for longest, count in buckets:
        left -= count
        points.append((longest, max(left / total, MARKS[-1][1])))
        if left / total <= MARKS[-1][1]:
            break
    return points


def curves(histograms: Sequence[dict[str, Any]], pattern: str) -> list[svg_plot.Curve]:
    """Two for each row whose name has the pattern in it: what was measured, and dashed its reference."""
    rows = [row for row in histograms if re.search(pattern, row["name"])]
    return [
        svg_plot.Curve(name, exceeding(row[key]), index, key != "buckets")
        for index, row in enumerate(rows)
        for name, key in ((row["name"], "buckets"), (f"{row['name']}: {row['reference']}", "reference_buckets"))
        if row[key]
    ]


def plot(histograms: Sequence[dict[str, Any]], pattern: str) -> str:
    """The page; ValueError if there is nothing to plot."""
    lines = curves(histograms, pattern)
    if not lines:
        raise ValueError("no row has the pattern in its name")
    return svg_plot.log_steps("Latency", ("microseconds", "quantile"), MARKS, lines)


def quantile(points: Sequence[tuple[float, float]], share: float) -> float:
    """The least time that no more than the share took longer than."""
    return next(longest for longest, above in points if above <= share)


def check_row(row: dict[str, Any], histogram: dict[str, Any]) -> None:
    """Both sides' buckets must say what the row says."""
    for key, names in (
        ("buckets", {"p50": 0.5, "p90": 0.1, "p99": 0.01, "p999": 0.001}),
        ("reference_buckets", {"reference_value": 0.5, "reference_p90": 0.1, "reference_p99": 0.01}),
    ):
        points = exceeding(histogram[key])
        shares = [above for _, above in points]
        assert shares == sorted(shares, reverse=True), key
        for name, share in names.items():
            found = quantile(points, share)
            assert row[name] <= found * 1.000001 and found <= row[name] * BUCKET_RATIO * 1.000001, (name, row, found)


def selftest(mlacatctl: str) -> int:
    """A short run of the true bench. Raises AssertionError where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "histogram.json"
        command = [mlacatctl, "bench", "--quick", "--json", "--filter", "ring.", "--histogram", str(path)]
        rows = {row["name"]: row for row in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)}
        histograms = json.loads(path.read_text())
    assert [one["name"] for one in histograms] == ["ring.latency", "ring.latency.messages"]
    for histogram in histograms:
        check_row(rows[histogram["name"]], histogram)
    root = xml.etree.ElementTree.fromstring(plot(histograms, ""))
    lines = [line.get("points", "").split() for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 4, "each row, and what it stands beside"
    for line in lines:
        places = [tuple(map(float, point.split(","))) for point in line]
        assert places == sorted(places), "longer is further right, and fewer took longer: further down"
        assert places[0][1] < places[-1][1]
    text = "".join(root.itertext())
    assert all(words in text for words in ("p99.9", "ring.latency: kernel in process", "the same as messages"))
    assert len(curves(histograms, "messages$")) == 2
    print("all right")
    return 0


def main() -> int:
    """Parses and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="?", help="what mlacatctl bench --histogram wrote")
    parser.add_argument("--out", default="latency.svg", help="the plot")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name has this regular expression")
    parser.add_argument("--selftest", metavar="MLACATCTL", help="check the plot of a short run of that program")
    options = parser.parse_args()
    if options.selftest:
        return selftest(options.selftest)
    if not options.json:
        parser.error("name the file that mlacatctl bench --histogram wrote")
    histograms = json.loads(pathlib.Path(options.json).read_text())
    try:
        pathlib.Path(options.out).write_text(plot(histograms, options.only))
    except ValueError as why:
        print(f"plot_latency.py: {options.json}: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
