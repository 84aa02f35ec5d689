"""What the bench leaves in its directory: a table, the same for programs, and plots.  Runs in the bench."""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from tests.bench.result import Bound, Comparison, Curve, Result


def write(work: Path, results: Sequence[Result]) -> str:
    """Writes report.md, results.json and the plots into `work`; returns the table."""
    machine = _machine()
    table = _table([each for each in results if not isinstance(each, Curve)])
    curves = [each for each in results if isinstance(each, Curve)]
    lines = ["# usbipd: make bench", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", table, ""]
    lines += [f"![{curve.title}]({_name(curve)}.svg)" for curve in curves]
    (work / "report.md").write_text("\n".join(lines) + "\n")
    document = {"machine": machine, "results": [_record(each) for each in results]}
    (work / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    for curve in curves:
        figure = _plot(curve)
        figure.savefig(work / f"{_name(curve)}.svg")
        figure.savefig(work / f"{_name(curve)}.png", dpi=100)
    return table


def _table(rows: Sequence[Comparison | Bound]) -> str:
    """A Markdown table."""
    lines = [
        "| what | unit | usbipd | reference | ratio | wanted | spread | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.is_met]
        if isinstance(row, Bound):
            limit = f"≤ {_number(row.limit)}"
            lines.append(f"| {row.what} | {row.unit} | {_number(row.worst)} | | | {limit} | | {met} |")
        else:
            sign = "≥" if row.direction == "at least" else "≤"
            wanted = "" if row.target is None else f"{sign} {row.target}"
            reference = f"{_number(median(row.reference))} {row.against}"
            lines.append(
                f"| {row.what} | {row.unit} | {_number(median(row.ours))} | {reference} "
                f"| {row.ratio:.2f} | {wanted} | {row.spread:.0%} | {met} |"
            )
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits or a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _record(result: Result) -> dict[str, object]:
    record: dict[str, object] = {"kind": type(result).__name__, **dataclasses.asdict(result)}
    if isinstance(result, Comparison):
        record |= {"ratio": result.ratio, "by_boot": result.by_boot, "spread": result.spread}
    if not isinstance(result, Curve):
        record["is_met"] = result.is_met
    return record


def _name(curve: Curve) -> str:
    """A file name made of the title."""
    return "".join(letter if letter.isalnum() else "-" for letter in curve.title.lower())


def _plot(curve: Curve) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curve.series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=name)
    values = [y for points in curve.series.values() for _, y in points]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: f"{x:,.0f}"))
    if max(values) > 10 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=1.1 * max(values))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.y)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return figure


def _machine() -> dict[str, str]:
    """Where the figures were taken."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit.stdout.strip() or "unknown",
        "processors": f"{len(os.sched_getaffinity(0))} x {model}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
