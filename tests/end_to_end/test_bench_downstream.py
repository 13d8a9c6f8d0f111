"""`prep bench downstream` as a process: the same figures again without training, and one training lost at most."""

import json
import shutil
from pathlib import Path

import polars as pl

from tests.conftest import run_prep

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def collection(folder: Path) -> Path:
    """Forty questions with four positives each that repeat its two letters."""
    folder.mkdir()
    codes = [f"{LETTERS[i % 26]} {LETTERS[(i * 7 + i // 26 + 3) % 26]}" for i in range(40)]
    documents = {
        f"d{i:02}{j}": f"{code} {code} {LETTERS[(i + j) % 26]}" for i, code in enumerate(codes) for j in range(4)
    }
    pl.DataFrame({"query_id": [f"q{i:02}" for i in range(40)], "query": [f"{code}?" for code in codes]}).write_parquet(
        folder / "queries.parquet"
    )
    pl.DataFrame({"doc_id": list(documents), "text": list(documents.values())}).write_parquet(folder / "corpus.parquet")
    pl.DataFrame({"query_id": [f"q{doc_id[1:3]}" for doc_id in documents], "doc_id": list(documents)}).write_parquet(
        folder / "qrels.parquet"
    )
    return folder


def test_the_command_reports_and_trains_nothing_twice(tmp_path: Path, tiny_model: Path) -> None:
    command = ["bench", "downstream", str(collection(tmp_path / "letters"))]
    command += ["--encoder", str(tiny_model), "--student", str(tiny_model), "--learning-rate", "3e-3"]
    command += ["--rule", "naive", "--rule", "learned", "--rule", "oracle", "--max-false-negatives", "0.5"]
    command += ["--seeds", "2", "--train-queries", "12", "--num-negatives", "3", "--top-k", "8", "--max-length", "32"]
    done = run_prep(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # what two rules take alike is trained once
    trained = done.stderr.count(": training")
    assert trained + done.stderr.count(": trained before") == 6
    assert trained == len(list((tmp_path / "work" / "runs" / "downstream").iterdir())) >= 4
    assert "letters: seed 2 of 2, oracle: training" in done.stderr
    found = json.loads(done.stdout)["sets"]["letters"]
    assert set(found["rules"]) == {"naive", "learned", "oracle"}
    assert found["rules"]["oracle"]["leak"] == 0
    assert found["rules"]["naive"]["leak"] > 0
    for name, expected in (("pairs", 12 * 4 * 2), ("steps", 2 * 2), ("fill", 1.0)):
        assert [of_rule[name] for of_rule in found["rules"].values()] == [expected] * 3
    assert [len(of_rule["loss"]) for of_rule in found["rules"].values()] == [2] * 3
    assert found["train_queries"] == 12
    for of_rule in (*found["rules"].values(), found["embedder"]):
        assert 0 <= of_rule["nDCG@10"] <= 1 and 0 <= of_rule["MRR@10"] <= 1
    naive, learned = (found["rules"][rule]["nDCG@10"] for rule in ("naive", "learned"))
    mean, low, high = found["differences"]["naive"]["nDCG@10"]
    assert abs(mean - (learned - naive)) < 1e-9
    assert low <= mean <= high

    shutil.rmtree(next((tmp_path / "work" / "runs" / "downstream").iterdir()))
    again = run_prep(*command, "--json", cwd=tmp_path)
    assert again.stderr.count(": training") == 1
    assert again.stderr.count(": trained before") == 5
    assert again.stdout == done.stdout

    shown = run_prep(*command, cwd=tmp_path)
    assert "embedder" in shown.stdout
    assert "12 train questions" in shown.stdout
    assert ": training" not in shown.stderr


def test_an_unknown_rule_names_the_flag_and_the_rules(tmp_path: Path) -> None:
    done = run_prep("bench", "downstream", str(tmp_path), "--rule", "best", cwd=tmp_path)
    assert done.returncode == 2
    assert "--rule" in done.stderr
    assert "there is no rule 'best'; there are naive" in done.stderr
    few = run_prep("bench", "downstream", str(tmp_path), "--seeds", "0", cwd=tmp_path)
    assert few.returncode == 2
    assert "--seeds = 0" in few.stderr
