"""The side-by-side bench: `python -m tests.benchmarks [--only NAME ...] [--scale F] [--json FILE]`.

Each work is done by prep and by its peers, in turn, each turn in a process of its own with the same threads; what
stands in the table is medians, with the least and the greatest ratio of one turn. A work that needs a GPU says so where
there is none. All works at full size take hours on two cores: --scale 0.02 shows the road in minutes, --size sets one
size by name.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.device import detect_device_type
from tests.benchmarks.turns import WORKS, compare, work_of

NO_GPU = "no GPU here: not run"
HEAD = ("work / against", "ours", "theirs", "ratio", "of CPU time", "goal", "met", "peak ours, GB", "theirs")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {"cpu": cpu, "cores": os.cpu_count(), "instructions": [flag for flag in wanted if flag in flags]}


def rows(name: str, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table that a work gives."""
    if "not_run" in found:
        return [(name, found["not_run"], *[""] * (len(HEAD) - 2))]
    return [
        (
            goal,
            _figure(row["ours"], row["figure"]),
            _figure(row["theirs"], row["figure"]),
            f"{row['ratio']:.3g} ({row['ratio_min']:.3g} to {row['ratio_max']:.3g})",
            "" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.3g}",
            row["goal"],
            "yes" if row["met"] else "no",
            _figure(row["peak_gb"]["ours"], ""),
            _figure(row["peak_gb"]["theirs"], ""),
        )
        for goal, row in found["goals"].items()
    ]


def _figure(value: float | None, figure: str) -> str:
    unit = {"seconds": " s", "peak_gb": " GB", "gflops": " GFLOP/s"}.get(figure, "")
    return "" if value is None else f"{value:,.3g}{unit}" if value < 100 else f"{value:,.0f}{unit}"


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


def main() -> None:
    """Run the works and print a Markdown table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(
        prog="tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the sizes of a work (default: those of its goal)"
    )
    parser.add_argument(
        "--size", type=_size, nargs="+", default=[], metavar="NAME=N", help="one size, as in queries=500"
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--folder", type=Path, help="where the data is made for a while (default: a temporary folder)")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "goals": {}, "works": {}}
    print(f"{found['machine']}, {given.threads} threads, {given.turns} turns", file=sys.stderr)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for name in given.only:
        work = work_of(name)
        if work.gpu and detect_device_type() != "cuda":
            found["works"][name] = {"about": work.about, "goals": {}, "not_run": NO_GPU}
        else:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                sizes = work.at(given.scale, dict(given.size))
                found["works"][name] = compare(name, Path(folder), sizes, given.turns, given.threads)
        for row in rows(name, found["works"][name]):
            print(f"| {' | '.join(row)} |", flush=True)
        found["goals"] |= found["works"][name].pop("goals")
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
