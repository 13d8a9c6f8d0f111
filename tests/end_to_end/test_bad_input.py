"""Bad input through a real process: exit 2 with one clear message, or rejected and counted rows; never a traceback."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, Project, run_prep

GOOD = """question,context,answer
where is the key,under the mat by the door,under the mat
who has the map,Ana keeps the map,Ana
"""


def refused(folder: Path, *arguments: str, says: tuple[str, ...]) -> str:
    """`prep` must end with 2, one message holding each of `says`, and no workspace result."""
    done = run_prep(*arguments, cwd=folder)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr, done.stderr
    assert not list(folder.glob("work/runs/*/[!.]*/manifest.json"))
    assert not list(folder.glob("work/runs/*/.tmp-*"))
    return done.stderr


def rejects(folder: Path) -> pl.DataFrame:
    """The rejects of the one pairs artifact in a folder's workspace."""
    (path,) = folder.glob("work/runs/pairs/*/rejects.parquet")
    return pl.read_parquet(path)


def built(folder: Path, *arguments: str) -> dict:  # type: ignore[type-arg]
    """Run build-pairs, which must succeed; its JSON."""
    done = run_prep("build-pairs", "--json", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    return result


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path, "build-pairs", "no.csv", says=("no.csv",))


def test_no_table_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "build-pairs", says=("tables",))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    refused(tmp_path, "build-pairs", "a.csv", says=("a.csv", "empty"))


def test_a_header_and_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,context\n")
    refused(tmp_path, "build-pairs", "a.csv", says=("a.csv",))


def test_the_wrong_encoding_is_named_and_the_right_one_works(tmp_path: Path) -> None:
    rows = "".join(f"où est la clé numéro {i},la clé numéro {i} est cachée près de l'entrée\n" for i in range(50))
    (tmp_path / "a.csv").write_bytes(("question,context\n" + rows).encode("cp1252"))
    refused(tmp_path, "build-pairs", "a.csv", says=("a.csv", "encoding = 'cp1252'"))
    assert built(tmp_path, "a.csv", "--encoding", "cp1252")["summary"]["pairs"]["queries"] == 50


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    refused(
        tmp_path, "build-pairs", "a.csv", "--question", "quesion", says=("quesion", "question", "context", "answer")
    )


def test_no_column_that_could_be_the_question(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("foo,bar\n1,2\n")
    refused(tmp_path, "build-pairs", "a.csv", says=("foo", "bar", "question under [pairs]"))


def test_all_answers_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nwhere is it,\nwho has it,\n")
    refused(tmp_path, "build-pairs", "a.csv", says=("a.csv", "answer"))


def test_duplicate_ids_with_different_texts_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "id,question,context\n1,where is it,in the box\n1,who has it,Ana has it\n2,when,at noon today\n"
    )
    assert built(tmp_path, "a.csv")["summary"]["pairs"]["queries"] == 2
    assert rejects(tmp_path).select("row").to_series().to_list() == [2]


def test_a_corrupt_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a b"] * 9, "context": ["c d"] * 9}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    refused(tmp_path, "build-pairs", "a.parquet", says=("a.parquet",))


def test_an_excel_sheet_that_does_not_exist(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"question": ["a b"], "context": ["c d"]}).to_excel(tmp_path / "a.xlsx", sheet_name="FAQ", index=False)
    refused(tmp_path, "build-pairs", "a.xlsx", "--sheet", "Faqs", says=("Faqs", "FAQ"))


def test_a_truncated_gzip(tmp_path: Path) -> None:
    data = gzip.compress((GOOD * 50).encode())
    (tmp_path / "a.csv.gz").write_bytes(data[: len(data) // 2])
    refused(tmp_path, "build-pairs", "a.csv.gz", says=("a.csv.gz",))


def test_one_document_only_and_fewer_documents_than_negatives(tmp_path: Path) -> None:
    one = "question,context\nwhere is it,in the box\nwhere was it,in the box\nis it in a box,in the box\n"
    (tmp_path / "one.csv").write_text(one)
    done = run_prep("mine-negatives", cwd=tmp_path) if built(tmp_path, "one.csv") else None
    assert done is not None
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "few.csv").write_text(
        "question,context\n"
        + "".join(f"where is item {w},item {w} is in room {w}\n" for w in ("one", "two", "three", "four"))
    )
    few = run_prep(
        "build-pairs", "few.csv", "--workspace", "few", "--test-ratio", "0", "--dev-ratio", "0", cwd=tmp_path
    )
    assert few.returncode == 0, few.stderr
    mined = run_prep(
        "mine-negatives",
        "--workspace",
        "few",
        "--mask",
        "none",
        "--no-exclude-answers",
        "--near-duplicate-similarity",
        "1",
        "--json",
        cwd=tmp_path,
    )
    assert mined.returncode == 0, mined.stderr
    (path,) = (tmp_path / "few").glob("runs/sample/*/mined.jsonl")
    for line in path.read_text().splitlines():
        row = json.loads(line)
        assert len(row["neg_ids"]) == len(set(row["neg_ids"])) == 3
        assert not set(row["neg_ids"]) & set(row["pos_ids"])


def test_a_query_without_a_positive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD + "what about this,,\n")
    result = built(tmp_path, "a.csv")
    assert result["summary"]["pairs"]["queries"] == 2
    assert rejects(tmp_path)["row"].to_list() == [3]


def test_a_cell_of_2_mb_passes_whole(tmp_path: Path) -> None:
    long = "word " * 400_000
    (tmp_path / "a.csv").write_text(GOOD + f'where is the long one,"{long}",\n')
    assert built(tmp_path, "a.csv")["summary"]["pairs"]["documents"] == 3
    (path,) = tmp_path.glob("work/runs/pairs/*/corpus.parquet")
    assert pl.read_parquet(path)["text"].str.len_chars().max() == len(long.strip())


def test_nul_bytes_and_ragged_rows_are_rejected_by_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        GOOD.encode() + b"what\x00is it,a thing,thing\nonly one cell\na,b,c,d,e\nwhere now,over there,there\n"
    )
    assert built(tmp_path, "a.csv")["summary"]["pairs"]["queries"] == 3
    assert rejects(tmp_path)["row"].to_list() == [3, 4, 5]


def test_an_unclosed_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD + 'where is it,"in the box,box\n' + "who is it,it is Ana,Ana\n" * 20)
    refused(tmp_path, "build-pairs", "a.csv", says=("a.csv", "quote", "4"))


def test_unknown_keys_and_wrong_types_in_prep_toml(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "prep.toml").write_text('[pairs]\ntables = ["a.csv"]\nquestoin = "q"\n')
    refused(tmp_path, "build-pairs", says=("prep.toml", "questoin", "question"))
    (tmp_path / "prep.toml").write_text('[pairs]\ntables = ["a.csv"]\n[search]\ntop_k = "deep"\n')
    refused(tmp_path, "build-pairs", says=("prep.toml", "[search] top_k", "'deep'"))


def test_a_model_path_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "prep.toml").write_text('[pairs]\ntables = ["a.csv"]\n[encode]\nmodel = "./folder"\n')
    done = run_prep("encode", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "folder" in done.stderr
    assert "not a model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root needs setpriv to lose its power")
def test_no_write_permission(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    ours = [sys.executable, "-m", "pipeline.cli.main", "build-pairs", "a.csv", "--workspace", "closed"]
    powerless = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*powerless, *ours], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2, done.stderr
    assert "closed can't be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(closed.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_failure(project: Project, finished: Path) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    # the reader is gone before anything is written, so that every write meets a broken pipe
    script = 'set -o pipefail; (sleep 3; exec "$0" -m pipeline.cli.main status) | true'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable],
        cwd=project.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_flag_names_the_close_one(tmp_path: Path) -> None:
    done = run_prep("train", "--epoch", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--epochs" in done.stderr


def test_usage_errors_are_json_too(tmp_path: Path) -> None:
    done = run_prep("train", "--epochs", "x", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "epochs" in json.loads(done.stdout)["error"]


def test_a_folder_that_is_in_use_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    refused(tmp_path, "build-pairs", "a.csv", "--workspace", ".", says=("holds other files",))
    refused(tmp_path, "gc", "--workspace", ".", says=("holds other files",))


def test_another_table_forgets_the_columns_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,body\nwhere is it,in the box\nwho has it,Ana has it\n")
    (tmp_path / "b.csv").write_text(GOOD)
    built(tmp_path, "a.csv", "--question", "q", "--document", "body")
    assert built(tmp_path, "b.csv")["summary"]["pairs"]["columns"]["question"] == "question"
    assert (tmp_path / "work" / "settings.json").stat().st_mode & 0o077 == 0
