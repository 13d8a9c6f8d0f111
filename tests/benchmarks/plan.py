"""What `prep plan` predicted, and what then happened: `python -m tests.benchmarks.plan [--only NAME ...] [--cpu]`.

For the sample and real tables (looked for in ../shared/data, or --data) with a short training: `prep plan`,
`prep refresh`, `prep plan --compare`, each in a process of its own. --cpu takes the processes' CPU time for a clock
(with one thread), so that other work on the machine does not count.
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


def short(sections: dict[str, Any], queries: int) -> dict[str, Any]:
    """The settings of a table with a training and an evaluation of minutes."""
    train = {"max_queries": queries, "negatives": 3, "batch_size": 4, "epochs": 1, "dev_queries": 10, "max_length": 128}
    return {"pairs": sections["pairs"], "train": train, "evaluate": {"top_k": 10, "max_queries": queries // 3}}


def ratios(name: str, data: Path, folder: Path, queries: int, cpu: bool) -> dict[str, Any]:
    """happened / predicted of each stage of one table, in a folder that must be new."""
    place = folder / name
    place.mkdir(parents=True)
    sections = SAMPLE if name == "sample" else TABLES[name]
    (place / "prep.toml").write_text(
        toml(short(sections, queries), ROOT / "data_samples" if name == "sample" else data)
    )
    prep = [sys.executable, "-c", BY_CPU] if cpu else [sys.executable, "-m", "pipeline.cli.main"]
    threads = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"} if cpu else {}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **threads}
    for arguments in (["plan", "-q"], ["refresh", "-q"]):  # a training so short may well be refused: that is no matter
        subprocess.run([*prep, *arguments], cwd=place, env=env, stdout=subprocess.DEVNULL, check=arguments[0] == "plan")
    told = subprocess.run([*prep, "plan", "--compare", "--json"], cwd=place, env=env, capture_output=True, check=True)
    rows = json.loads(told.stdout)["compared"]["stages"]
    return {"name": name, **{row["stage"]: row["ratio"] for row in rows}}


def main() -> None:
    """Print a JSON line for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["sample", *TABLES], default=["sample", "covid_faq", "stackfaq"])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=Path("plans"), help="a new folder for the workspaces")
    parser.add_argument("--queries", type=int, default=60, help="train questions")
    parser.add_argument("--cpu", action="store_true", help="go by CPU time, on one thread")
    given = parser.parse_args()
    for name in given.only:
        found = ratios(name, given.data.absolute(), given.folder.absolute(), given.queries, given.cpu)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
