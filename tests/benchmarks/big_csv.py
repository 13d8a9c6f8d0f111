"""Peak memory and time of the pairs stage on a large CSV: writes one and runs the stage in a process of its own.

python -m tests.benchmarks.big_csv --gigabytes 5
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_STAGE = """
import json, sys
from pathlib import Path
from stages.core.context import NullProgress, StageContext
from stages.pairs import stage

table, folder = sys.argv[1:]
(Path(folder) / "out").mkdir()
context = StageContext(NullProgress(), Path(folder) / "scratch", Path(folder), Path(folder))
print(json.dumps(stage.run(stage.Params(tables=(table,)), {}, Path(folder) / "out", context)))
"""


def write_table(path: Path, size: int, document_chars: int, questions: int, ids: bool) -> int:
    """Write about `size` bytes of rows (id, question, context, answer), `questions` to each document; returns rows."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    pool = " ".join(draw.choices(words, k=1_000_000))
    rows = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((["id"] if ids else []) + ["question", "context", "answer"])
        while file.tell() < size:
            for _ in range(500):
                start = draw.randrange(len(pool) - document_chars)
                document = f"{rows} {pool[start : start + document_chars]}"
                for _ in range(questions):
                    at = draw.randrange(len(pool) - 70)
                    row = [f"{rows} {pool[at : at + 60]}?", document, document[20:50]]
                    writer.writerow(([f"q{rows:09d}"] if ids else []) + row)
                    rows += 1
    return rows


def main() -> None:
    """Write the table, run the stage, print peak memory and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the CSV")
    parser.add_argument("--document-chars", type=int, default=1000, help="length of a document")
    parser.add_argument("--questions", type=int, default=2, help="questions to each document")
    parser.add_argument("--no-ids", action="store_true", help="leave the id column out")
    parser.add_argument("--folder", type=Path, help="where to put the table (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = write_table(
            folder / "big.csv", int(given.gigabytes * 1e9), given.document_chars, given.questions, not given.no_ids
        )
        size = (folder / "big.csv").stat().st_size
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _STAGE, str(folder / "big.csv"), name], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak, busy = used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime
        found = json.loads(done.stdout)
        print(
            f"{size / 1e9:.2f} GB, {rows:,} rows, {found['documents']:,} documents: peak RSS {peak:.2f} GiB, "
            f"{seconds:.0f} s, {size / 1e6 / seconds:.0f} MB/s "
            f"({busy:.0f} s of processor time: {size / 1e6 / busy:.0f} MB/s)"
        )


if __name__ == "__main__":
    main()
