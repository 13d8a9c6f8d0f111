"""What `prep plan` estimated, and what then happened: `python -m tests.benchmarks.plan [--only NAME ...] [--cpu]`.

For the sample and real tables (looked for in ../shared/data, or --data) with a short training: `prep plan`, whose rates
are measured, and `prep refresh`; then both again with more training queries, at the rates of the first run. Each is a
process of its own. --cpu takes the processes' CPU time for a clock (with one thread), so that other work on the machine
does not count.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.real_tables import ROOT, TABLES, toml

SAMPLE = {"pairs": {"tables": ["questions.csv"], "document": "article", "document_id": "article_id", "id": "ticket"}}
BY_CPU = "import time; time.monotonic = time.process_time; from pipeline.cli.main import main; main()"


def shorten(sections: dict[str, Any], max_queries: int) -> dict[str, Any]:
    """The settings of a table with a training and an evaluation of minutes."""
    train = {"max_queries": max_queries, "num_negatives": 3, "batch_size": 4, "epochs": 1, "max_length": 128}
    evaluate = {"top_k": 10, "max_queries": max_queries // 3}
    return {"pairs": sections["pairs"], "train": {**train, "max_dev_queries": 10}, "evaluate": evaluate}


def measure_ratios(folder: Path, cpu: bool) -> dict[str, float]:
    """Seconds that happened / seconds that were estimated, of each step that takes a second."""
    prep = [sys.executable, "-c", BY_CPU] if cpu else [sys.executable, "-m", "pipeline.cli.main"]
    threads = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"} if cpu else {}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **threads}
    plan = subprocess.run([*prep, "plan", "-q", "--json"], cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
    estimated = {one["step"]: one["seconds"] for one in json.loads(plan.stdout)["steps"]}
    subprocess.run([*prep, "refresh", "-q"], cwd=folder, env=env, stdout=subprocess.DEVNULL)  # a gate may refuse it
    events = [json.loads(line) for line in (folder / "work" / "events.jsonl").read_text().splitlines()]
    took = {event["stage"]: event["seconds"] for event in events if event["event"] == "done"}
    return {step: round(took[step] / n, 2) for step, n in estimated.items() if n and n > 1}


def main() -> None:
    """Print a JSON line for each table and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["sample", *TABLES], default=["sample", "covid_faq", "stackfaq"])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=Path("plans"), help="a new folder for the workspaces")
    parser.add_argument("--queries", type=int, default=60, help="train queries of the first run")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time, on one thread")
    given = parser.parse_args()
    for name in given.only:
        folder = given.folder.absolute() / name
        folder.mkdir(parents=True)
        sections, data = (SAMPLE, ROOT / "data_samples") if name == "sample" else (TABLES[name], given.data.absolute())
        for rates, max_queries in (("probe", given.queries), ("last run", 2 * given.queries)):
            (folder / "prep.toml").write_text(toml(shorten(sections, max_queries), data))
            print(json.dumps({"table": name, "rates": rates, **measure_ratios(folder, given.cpu)}), flush=True)


if __name__ == "__main__":
    main()
