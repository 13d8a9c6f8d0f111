"""A refresh after 1 % of the rows changed against the first run, training apart: `prep mine-negatives` as a process.

The table is squad_dev's. Of the rows that change one half gets another question, the other another context. Each turn
begins with a first run in an empty folder; the refresh then works on a copy of what that left.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.clock import Clock
from tests.benchmarks.work import Goal, Result, Sizes, Work

TABLE = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "squad_dev" / "qa_table.csv"
CHANGED = 0.01


def prepare(folder: Path, sizes: Sizes) -> Result:
    """before.csv and after.csv: so many rows of the table, and the same with some of them changed, drawn by id."""
    from stages.core.hashing import stable_hash

    with TABLE.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        every = list(reader)
    rows = every[: sizes["rows"]]
    drawn = sorted(range(len(rows)), key=lambda i: (stable_hash(0, "changed", rows[i]["id"]), i))
    changed = drawn[: max(2, round(CHANGED * len(rows)))]
    after = [dict(row) for row in rows]
    for place, i in enumerate(changed):
        if place % 2:
            after[i]["context"] += f" This passage was revised in note {place}."
        else:
            after[i]["question"] = f"According to the text, {after[i]['question']}"
    for name, table in (("before", rows), ("after", after)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(table)
    return {"rows": len(rows), "changed": len(changed)}


def first(folder: Path, sizes: Sizes) -> Result:
    """A run from nothing; what it leaves is what `ours` goes on from."""
    place = _fresh(folder / "first")
    shutil.copy(folder / "before.csv", place / "table.csv")
    return _prep(place)


def ours(folder: Path, sizes: Sizes) -> Result:
    """A run after the change. tests/end_to_end/test_incremental.py holds that its bytes are those of a full run."""
    place = _fresh(folder / "second")
    shutil.copytree(folder / "first", place, symlinks=True, dirs_exist_ok=True)
    shutil.copy(folder / "after.csv", place / "table.csv")
    result = _prep(place)
    assert "sample" in result["stages"], "the refresh did not see the change"
    return result


def nothing(folder: Path, sizes: Sizes) -> Result:
    """A run where nothing changed: what finding that out costs."""
    place = _fresh(folder / "third")
    shutil.copytree(folder / "second", place, symlinks=True, dirs_exist_ok=True)
    result = _prep(place)
    assert not result["stages"], "something ran though nothing had changed"
    return result


def _fresh(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "prep.toml").write_text('[pairs]\ntables = ["table.csv"]\n')
    return place


def _prep(place: Path) -> Result:
    """`prep mine-negatives` in a folder: its seconds as a process, and those of each stage as events.jsonl has them."""
    events = place / "work" / "events.jsonl"
    before = len(events.read_text().splitlines()) if events.exists() else 0
    clock = Clock()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "mine-negatives", "--json", "-q"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    took = clock.result()
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    told: list[dict[str, Any]] = [json.loads(line) for line in events.read_text().splitlines()[before:]]
    stages = {event["stage"]: event["seconds"] for event in told if event["event"] == "done"}
    return {**took, "stages": stages}


WORK = Work(
    about="prep mine-negatives on squad_dev after 1 % of its rows changed",
    sizes={"rows": 10_570},
    scaled=frozenset({"rows"}),
    prepare=prepare,
    sides={"first run": first, "ours": ours, "nothing changed": nothing},
    goals=(Goal("first run", over="ours", under="first run", at_most=0.03),),
)
