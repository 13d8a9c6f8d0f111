"""What masks leave of the sample's false negatives, which were read by hand: `python -m tests.benchmarks.by_hand`.

Prints, a line a mask, how many of the negatives written stand in data_samples/false_negatives.csv, and the mean score
of the others. No question of the sample has several positives, so the prior speaks alone, and knows none of it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import polars as pl

SAMPLE = Path(__file__).parent.parent.parent / "data_samples"
MASKS = (
    *(("--mask", "learned", "--max-false-negatives", share) for share in ("0.005", "0.01", "0.02", "0.05")),
    ("--mask", "perc"),
)


def mined(workspace: Path, mask: tuple[str, ...]) -> Path:
    """mined.jsonl of the sample under a mask."""
    flags = ["--config", str(SAMPLE / "prep.toml"), "--workspace", str(workspace), "--json", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "mine-negatives", *flags, *mask],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(done.stdout)["artifacts"]["sample"]) / "mined.jsonl"


def main() -> None:
    """Mine under each mask and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("by-hand"))
    workspace = parser.parse_args().workspace.absolute()
    pairs = pl.read_csv(SAMPLE / "false_negatives.csv", infer_schema=False).select("ticket", "article_id")
    false = set(pairs.iter_rows())
    for mask in MASKS:
        lines = [json.loads(line) for line in mined(workspace, mask).read_text(encoding="utf-8").splitlines()]
        found = [
            ((line["query_id"], doc_id) in false, score)
            for line in lines
            for doc_id, score in zip(line["neg_ids"], line["neg_scores"], strict=True)
        ]
        wrong = sum(bad for bad, _ in found)
        hardness = sum(score for bad, score in found if not bad) / (len(found) - wrong)
        print(f"{' '.join(mask)}: {len(found)} negatives, {wrong / len(found):.2%} false, hardness {hardness:.3f}")


if __name__ == "__main__":
    main()
