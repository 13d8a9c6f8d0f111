"""From file to metrics on real tables: `python -m tests.benchmarks.real_tables [--only NAME ...] [--data FOLDER]`.

Runs `prep refresh` in a process of its own for each table, and prints what came out, how long it took and the peak
memory. The tables are not part of the project; without --data they are looked for in ../shared/data.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SMALL: dict[str, dict[str, Any]] = {
    "train": {"max_queries": 300, "negatives": 4, "batch_size": 4, "epochs": 1, "dev_queries": 50},
    "evaluate": {"top_k": 10, "max_queries": 100},
}
LEAST: dict[str, dict[str, Any]] = {
    "train": {"max_queries": 150, "negatives": 4, "batch_size": 4, "epochs": 1, "dev_queries": 20},
    "evaluate": {"top_k": 10, "max_queries": 50},
}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    # with so many questions a new head learns enough without the first lesson, which would double the time
    "squad_dev": {
        "pairs": {"tables": ["squad_dev/qa_table.csv"]},
        "train": {
            "max_queries": 1000,
            "negatives": 5,
            "epochs": 1,
            "distill_epochs": 0,
            "learning_rate": 6e-5,
            "dev_queries": 100,
        },
        "evaluate": {"top_k": 30, "max_queries": 200},
    },
    "stackfaq": {"pairs": {"tables": ["stackfaq/qa_table.csv"], "document": "answer"}, **SMALL},
    "medquad": {"pairs": {"tables": ["medquad/qa_table.parquet"]}, **LEAST},
    "covid_faq": {"pairs": {"tables": ["covid_faq/qa_table.csv"]}, **LEAST},
    "masteringrag_qd": {"pairs": {"tables": ["masteringrag/question_answer.xlsx"]}, **LEAST},
    "masteringrag_qa": {"pairs": {"tables": ["masteringrag/question_answer.xlsx"], "document": "answer"}, **LEAST},
    "cmrc2018": {"pairs": {"tables": ["cmrc2018/qa_table.jsonl"]}, **LEAST},
}


FIXED = {"mask": "perc", "thin_similarity": 2.0}
"""The figures in the README were taken with a fixed rule and nothing thinned."""


def toml(sections: dict[str, dict[str, Any]], data: Path) -> str:
    """The settings as prep.toml, with the tables' paths under `data`."""
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            given = [str(data / path) for path in value] if name == "tables" else value
            lines.append(f"{name} = {json.dumps(given)}")
    return "\n".join(lines) + "\n"


def refresh(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """Run one table in `folder`/`name`, from nothing or on from where an earlier run got to; its
    figures."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "prep.toml").write_text(toml({"mine": FIXED, **TABLES[name]}, data))
    command = [sys.executable, "-m", "pipeline.cli.main", "refresh", "--json"]
    started = time.monotonic()
    with (place / "stderr.log").open("w") as log:
        done = subprocess.run(
            command, cwd=place, stdout=subprocess.PIPE, stderr=log, env={"PYTHONPATH": str(ROOT), "PATH": ""}
        )
    minutes = (time.monotonic() - started) / 60
    found: dict[str, Any] = {"name": name, "exit": done.returncode, "minutes": round(minutes, 1)}
    if done.returncode:
        return {**found, "error": json.loads(done.stdout)["error"]}
    summary = json.loads(done.stdout)["summary"]
    metrics = json.loads((place / "work" / "current" / "metrics.json").read_text())
    rows = metrics["test"] or {}
    found |= {"queries": summary["pairs"]["queries"], "documents": summary["pairs"]["documents"]}
    found |= {
        "fill_rate": summary["sample"]["fill_rate"],
        "test questions": metrics["candidate_lists"]["test"]["n_queries"],
    }
    found |= {f"{row} MRR@10": values["MRR@10"] for row, values in rows.items()}
    if rows:
        found["fused - embedder"] = metrics["tests"]["test"]["fused"]["MRR@10"]
    return found


def main() -> None:
    """Run the tables one after another and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=Path("real-tables"), help="where the workspaces are made")
    given = parser.parse_args()
    for name in given.only:
        print(json.dumps(refresh(name, given.data.absolute(), given.folder.absolute())), flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)
    print(json.dumps({"peak memory of the largest process, GiB": round(peak, 2)}))


if __name__ == "__main__":
    main()
