"""`prep bench negatives` as a process: its report as JSON and for people, and a prior fitted by it."""

import json
from pathlib import Path

import polars as pl

from tests.conftest import run_prep
from tests.end_to_end.test_bench_downstream import collection


def test_the_report_with_half_and_with_one_positive_kept(tmp_path: Path, tiny_model: Path) -> None:
    command = [
        "bench",
        "negatives",
        str(collection(tmp_path / "letters")),
        "--encoder",
        str(tiny_model),
        "--num-negatives",
        "3",
    ]
    done = run_prep(*command, "--json", "--write-model", "pretrained_model.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    of_set = found["sets"]["letters"]
    assert (of_set["queries"], of_set["hidden"], of_set["documents"]) == (40, 80, 160)
    assert set(of_set["rules"]["naive"]) >= {"leak", "rows", "hardness", "fill"}
    equal = {one["rule"]: one for one in of_set["equal_hardness"]}["perc_max 0.9"]
    assert {"hardness", "leak_rule", "leak_learned", "fill_rule", "fill_learned"} <= set(equal)
    assert "median_ratio" in found
    prior = json.loads((tmp_path / "pretrained_model.json").read_text())
    assert prior["sets"]["letters"]["n_held_out_keep_one"] > prior["sets"]["letters"]["n_held_out"] > 0
    assert prior["all_sets"]["single_positive"] != prior["all_sets"]["multi_positive"]

    one = run_prep(*command, "--keep-positives", "one", cwd=tmp_path)
    assert "letters: 40 questions, 120 held-out positives; learned from pretrained" in one.stdout
    assert "0 queries with several positives are too few" in one.stderr


def test_a_folder_without_held_out_positives_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    folder = collection(tmp_path / "letters")
    qrels = pl.read_parquet(folder / "qrels.parquet").unique("query_id", keep="first", maintain_order=True)
    qrels.write_parquet(folder / "qrels.parquet")
    command = [
        "bench",
        "negatives",
        str(folder),
        "--encoder",
        str(tiny_model),
        "--write-model",
        "pretrained_model.json",
    ]
    done = run_prep(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "candidates of letters are held-out positives" in done.stderr
    assert not (tmp_path / "pretrained_model.json").exists()
