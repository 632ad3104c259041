# SPDX-License-Identifier: Apache-2.0
"""What compare_torch.py measures and how it is shown: the calls, the table, the plot. Needs no torch and no GPU."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass, field
from typing import Iterable, Sequence

import svg_plot

CALLS = 64
ROUNDS = 9
MODELS = pathlib.Path(__file__).resolve().parents[2] / "client" / "ctl" / "models.c"
MODEL_PREFILL_TOKENS = 4096
MODEL_DECODE_TOKENS = 128
ELEMENT_BYTES = {"bf16": 2, "fp8_e4m3": 1}
K, Q = "concat_mla_k", "concat_mla_absorb_q"
COPY, SERVICE = "device copy", "mlacat"
WAYS = (COPY, "torch slices", "torch.cat", "sgl-kernel", "FlashInfer", SERVICE)


@dataclass(frozen=True)
class Case:
    """One call; widths in elements."""

    op: str
    dtype: str
    dim0: int
    dim1: int
    first: int
    second: int
    label: str = ""

    def name(self) -> str:
        """'K bf16 2048x128 128+64'"""
        short = "K" if self.op == K else "Q"
        text = f"{short} {self.dtype} {self.dim0}x{self.dim1} {self.first}+{self.second}"
        return f"{self.label}: {text}" if self.label else text

    def shapes(self) -> list[tuple[int, int, int]]:
        """Output, first and second input."""
        middle = 1 if self.op == K else self.dim1
        return [
            (self.dim0, self.dim1, self.first + self.second),
            (self.dim0, self.dim1, self.first),
            (self.dim0, middle, self.second),
        ]

    def operand_bytes(self) -> list[int]:
        """Of each operand."""
        return [d0 * d1 * d2 * ELEMENT_BYTES[self.dtype] for d0, d1, d2 in self.shapes()]

    def moved_bytes(self) -> int:
        """Read and written, each byte once."""
        return sum(self.operand_bytes())


@dataclass
class Row:
    """What was measured of a case."""

    case: Case
    us: dict[str, float] = field(default_factory=dict)  # a call, by way
    ratio: dict[str, float] = field(default_factory=dict)  # the copy's time by the way's: more is better
    wrong: set[str] = field(default_factory=set)  # ways with a wrong result


def read_models(text: str) -> list[tuple[str, int, int, int, int]]:
    """Name, heads, nope, rope and latent of each row of models.c."""
    rows = re.findall(r'\{"([^"]+)", (\d+), (\d+), (\d+), \d+, (\d+)\}', text)
    return [(name, int(heads), int(nope), int(rope), int(latent)) for name, heads, nope, rope, latent in rows]


def all_cases(models: Iterable[tuple[str, int, int, int, int]]) -> list[Case]:
    """The shapes that docs/performance.md has goals for, the smallest call, and each model's prefill and decode."""
    cases = [Case(K, "bf16", tokens, 128, 128, 64) for tokens in (2048, 8192, 32768)]
    cases += [Case(K, "bf16", 8192 * 128 // heads, heads, 128, 64) for heads in (16, 12, 8)]
    cases += [Case(K, "fp8_e4m3", tokens, 128, 128, 64) for tokens in (8192, 32768)]
    cases += [Case(Q, "bf16", 2048, 128, 512, 64), Case(K, "bf16", 1, 16, 128, 64)]
    for name, heads, nope, rope, latent in models:
        cases.append(Case(K, "bf16", MODEL_PREFILL_TOKENS, heads, nope, rope, name))
        cases.append(Case(Q, "bf16", MODEL_DECODE_TOKENS, heads, latent, rope, name))
    return cases


def markdown(rows: Sequence[Row], facts: Sequence[str], notes: Sequence[str], command: str) -> str:
    """The page with the table; microseconds a call, and in brackets the copy's time by it."""
    lines = ["# The service against torch", ""]
    lines += [*facts, "", f"    {command}", ""]
    lines += [
        f"{CALLS} calls in flight, wall time until the last has ended, microseconds a call; median of {ROUNDS} rounds",
        "in which the ways take turns. In brackets the time of a device-to-device copy of the same bytes divided by",
        "it, so more is better. Everything runs in one process but the service, which is a daemon beside it. Each",
        "way's output was compared with `torch.cat` of the same bytes, bit for bit.",
        "",
        "![How close each way comes to a copy](compare_torch.svg)",
        "",
        "| call | moved | " + " | ".join(WAYS) + " |",
        "|" + "---|" * (2 + len(WAYS)),
    ]
    for row in rows:
        cells = [row.case.name(), f"{row.case.moved_bytes() / 1e6:.3g} MB"]
        for way in WAYS:
            text = "-"
            if way in row.us:
                text = f"{row.us[way]:.2f}" + (f" ({row.ratio[way]:.3f})" if way != COPY else "")
            cells.append(text + (" WRONG" if way in row.wrong else ""))
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], title: str) -> str:
    """Ratio to the copy of every way that ran at all."""
    ran = [way for way in WAYS if way != COPY and any(way in row.ratio for row in rows)]
    series = [svg_plot.Series(way, [row.ratio.get(way) for row in rows]) for way in ran]
    axis = "time of a device copy of the same bytes / time of the call"
    return svg_plot.grouped_bars(title, axis, [row.case.name() for row in rows], series, 1.0)
