"""Tables behind URLs, and publications copied to one: Arrow's own clients against an object store and a folder."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import RefreshParams, load_settings
from pipeline.workflow.remote_files import (
    POINTER_FILE,
    fetch_files,
    find_cached_files,
    find_stale_files,
    redact_url,
    upload_publication,
)
from stages.core.errors import InputError
from stages.core.files import file_digest
from stages.readers.files import find_files
from stages.readers.parquet import read_arrow
from tests.objectstore import Store, serving


@pytest.fixture
def store() -> Iterator[Store]:
    with serving() as found:
        yield found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


def read(workspace: Workspace, store: Store, place: str) -> list[tuple[str, bytes]]:
    """Name and content of the files that a table's URL becomes; the store forgets what it was asked before."""
    store.requests.clear()
    asked_for = {"tables": ["mine.csv", store.url(place)], "corpus": ["a.csv"], "question": "q"}
    found = fetch_files(workspace, asked_for)
    assert (found["tables"][0], found.keys()) == ("mine.csv", {"tables"})
    assert find_cached_files(workspace, asked_for) == found
    return [(Path(file).name, Path(file).read_bytes()) for file in found["tables"][1:]]


def asked(store: Store) -> list[str]:
    return [name for method, name in store.requests if method == "GET" and name.endswith(".csv")]


def test_a_table_is_fetched_and_not_again_until_it_changes(workspace: Workspace, store: Store) -> None:
    store.put("bucket/faq/a.csv", b"one", written=1e9)
    for fetches in (1, 0):
        assert read(workspace, store, "bucket/faq/a.csv") == [("a.csv", b"one")]
        assert len(asked(store)) == fetches
    store.put("bucket/faq/a.csv", b"two", written=1e9 + 1)  # of the same size
    assert read(workspace, store, "bucket/faq/a.csv") == [("a.csv", b"two")]


def test_a_recently_written_file_is_fetched_again(workspace: Workspace, store: Store) -> None:
    now = time.time()
    store.put("bucket/a.csv", b"one", written=now)
    assert read(workspace, store, "bucket/a.csv") == [("a.csv", b"one")]
    store.put("bucket/a.csv", b"two", written=now)
    assert read(workspace, store, "bucket/a.csv") == [("a.csv", b"two")]


def test_a_damaged_copy_note_is_no_reason_to_believe_it(workspace: Workspace, store: Store) -> None:
    store.put("bucket/a.csv", b"one")
    read(workspace, store, "bucket/a.csv")
    (note,) = (path for path in workspace.root.rglob("*.json") if path.name != "index.json")
    for damage in (b"", b"{", b"[]", b"\xff"):
        note.write_bytes(damage)
        assert read(workspace, store, "bucket/a.csv") == [("a.csv", b"one")]
        assert len(asked(store)) == 1
    (copy,) = workspace.root.rglob("a.csv")
    copy.write_bytes(b"")  # torn
    assert read(workspace, store, "bucket/a.csv") == [("a.csv", b"one")]


def test_a_glob_matches_files_in_the_order_of_names(workspace: Workspace, store: Store) -> None:
    for name in ("faq/b-2.csv", "faq/b-1.csv", "faq/c.csv", "faq/b-deep/d.csv", "other/b-1.csv"):
        store.put(f"bucket/{name}", name.encode())
    assert read(workspace, store, "bucket/faq/b-*.csv") == [("b-1.csv", b"faq/b-1.csv"), ("b-2.csv", b"faq/b-2.csv")]
    # two of one name keep apart, and what two URLs name is there once
    urls = [store.url(f"bucket/{place}") for place in ("faq/b-1.csv", "other/b-1.csv", "faq/*-1.csv")]
    both = fetch_files(workspace, {"corpus": tuple(urls)})
    assert [Path(file).read_text() for file in both["corpus"]] == ["faq/b-1.csv", "other/b-1.csv"]
    assert (
        Path(fetch_files(workspace, {"label_overrides": store.url("bucket/faq/c.csv")})["label_overrides"]).read_text()
        == "faq/c.csv"
    )
    with pytest.raises(InputError, match="2 files match, and only one is allowed"):
        fetch_files(workspace, {"label_overrides": store.url("bucket/faq/b-*.csv")})


def test_a_name_is_taken_as_it_is_before_it_is_a_pattern(workspace: Workspace, store: Store) -> None:
    for name in ("q[1].csv", "q1.csv", "fetched.json", "index.json"):
        store.put(f"bucket/{name}", name.encode())
        assert read(workspace, store, f"bucket/{quote(name)}") == [(name, name.encode())]


def test_files_that_are_no_longer_needed_are_stale(workspace: Workspace, store: Store) -> None:
    for name in ("a.csv", "b.csv"):
        store.put(f"bucket/{name}", b"one")
        read(workspace, store, f"bucket/{name}")
    left = list(find_stale_files(workspace))
    assert sorted(path.suffix for path in left) == ["", ".json"]
    assert [file.name for path in left if path.is_dir() for file in path.iterdir()] == ["a.csv"]
    fetch_files(workspace, {"tables": ["mine.csv"]})  # no URL is left
    assert sorted(path.suffix for path in find_stale_files(workspace)) == ["", "", ".json", ".json"]
    assert find_cached_files(workspace, {"tables": [store.url("bucket/b.csv")]}) == {
        "tables": [store.url("bucket/b.csv")]
    }


def test_reading_the_state_sends_no_request_and_writes_nothing(workspace: Workspace, store: Store) -> None:
    url = store.url("bucket/a.csv")
    assert find_cached_files(workspace, {"tables": url}) == {"tables": [url]}
    with pytest.raises(InputError, match="not fetched yet") as caught:
        find_files([url], "[pairs] tables")
    assert url not in str(caught.value)
    assert not workspace.root.exists()
    assert not store.requests


def test_a_query_is_executed_when_files_are_fetched_and_not_when_they_are_looked_up(
    workspace: Workspace, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "faq.db") as database:
        database.execute("CREATE TABLE faq (question TEXT, answer TEXT)")
    settings = {"database": f"sqlite:///{tmp_path}/faq.db", "sql": "SELECT * FROM faq"}
    assert find_cached_files(workspace, settings) == {}
    database.execute("INSERT INTO faq VALUES ('Who pays?', 'The sender.')")
    database.commit()
    found = fetch_files(workspace, settings)
    assert [batch.columns for batch in read_arrow(Path(found["database"]), "sql")][-1] == {
        "question": ["Who pays?"],
        "answer": ["The sender."],
    }
    before = file_digest(Path(found["database"]))
    database.execute("DELETE FROM faq")
    database.commit()
    assert find_cached_files(workspace, settings) == found
    assert file_digest(Path(found["database"])) == before
    assert fetch_files(workspace, settings) == found
    assert file_digest(Path(found["database"])) != before
    assert list(find_stale_files(workspace)) == []
    assert fetch_files(workspace, {"tables": ["faq.csv"]}) == {}
    assert list(find_stale_files(workspace)) == [Path(found["database"]).parent]


def test_a_missing_or_unreadable_file_is_an_error_without_the_secret(workspace: Workspace, store: Store) -> None:
    store.put("bucket/faq/a.csv", b"one")
    for place in ("bucket/faq/b.csv", "bucket/faq/b*.csv", "bucket/faq/"):
        with pytest.raises(
            InputError, match=rf"^\[pairs\] tables = s3://{place.replace('*', '.')}: there is no such file"
        ):
            read(workspace, store, place)
    for url in ("voodoo://me:hush@bucket/a.csv?token=hush", "s3://me:hu/hush+x@bucket/a.csv?no_such_option=1"):
        with pytest.raises(InputError, match=r"^\[pairs\] tables = .* can't be read: .*AWS_ACCESS_KEY_ID") as error:
            fetch_files(workspace, {"tables": [url]})
        assert "hush" not in str(error.value)
    for place, why in (("bucket/*/a.csv", "only the last part"), ("bucket/a.csv#1", "Write %23")):
        with pytest.raises(InputError, match=why):
            fetch_files(workspace, {"tables": [f"s3://{place}"]})
    assert redact_url("s3://me:sec/ret@bucket/a@b.csv?region=x") == "s3://bucket/a@b.csv"
    assert redact_url(["s3://bucket/a@b.csv", "a.csv", None]) == ["s3://bucket/a@b.csv", "a.csv", None]


def test_settings_take_the_files_in_the_place_of_urls(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "faq.csv").write_text("question,answer\n")
    (tmp_path / "prep.toml").write_text(f'[pairs]\ntables = "{(tmp_path / "faq.csv").as_uri()}"\n')
    settings, _ = load_settings(tmp_path / "prep.toml", workspace)
    settings.local_paths = fetch_files(workspace, settings.sections["pairs"])
    (file,) = settings.validate_params()["pairs"].tables  # type: ignore[attr-defined]
    assert Path(file).read_text() == "question,answer\n"
    assert Path(file).is_relative_to(workspace.root)
    with pytest.raises(ValueError, match="this is no URL"):
        RefreshParams(publish_to="/srv/prep")


def test_a_secret_is_not_shown_among_the_settings_that_are_remembered(workspace: Workspace) -> None:
    workspace.root.mkdir()
    kept = {"pairs": {"tables": ["s3://me:SECRET@b/a.csv"]}, "refresh": {"publish_to": "s3://me:SECRET@bucket/prep"}}
    (workspace.root / "settings.json").write_text(json.dumps(kept))
    remembered = load_settings(None, workspace)[0].describe_remembered()
    assert remembered is not None
    assert "s3://bucket/prep" in remembered
    assert "SECRET" not in remembered


def published(workspace: Workspace, name: str, weights: bytes) -> None:
    """A publication of a file and of a folder, both behind links, as `current`."""
    made = workspace.runs / name
    (made / "reranker").mkdir(parents=True)
    (made / "reranker" / "model.safetensors").write_bytes(weights)
    (made / "mined.jsonl").write_text("{}\n")
    folder = workspace.published / name
    folder.mkdir(parents=True)
    for what in ("reranker", "mined.jsonl"):
        (folder / what).symlink_to(made / what)
    workspace.current.unlink(missing_ok=True)
    workspace.current.symlink_to(Path("published") / name)


def test_a_publication_is_copied_and_then_named(workspace: Workspace, store: Store) -> None:
    url = store.url("bucket/prep")
    large = bytes(range(256)) * 50_000  # several parts
    published(workspace, "first", large)
    assert upload_publication(workspace, url)
    assert store.objects["bucket/prep/published/first/reranker/model.safetensors"][0] == large
    assert store.objects["bucket/prep/published/first/mined.jsonl"][0] == b"{}\n"
    pointer = json.loads(store.objects[f"bucket/prep/{POINTER_FILE}"][0])
    model = workspace.current / "reranker" / "model.safetensors"
    assert pointer["publication"] == "published/first"
    assert pointer["files"]["reranker/model.safetensors"] == file_digest(model)
    assert [name for method, name in store.requests if method in ("PUT", "POST")][-1] == f"bucket/prep/{POINTER_FILE}"
    store.requests.clear()
    assert not upload_publication(workspace, url)
    assert {method for method, _ in store.requests} <= {"GET", "HEAD"}


def test_readers_keep_the_old_one_until_all_of_the_new_one_is_there(workspace: Workspace, store: Store) -> None:
    url = store.url("bucket/prep")
    published(workspace, "first", b"old")
    upload_publication(workspace, url)
    published(workspace, "second", b"new")
    store.refuse = "model.safetensors"
    with pytest.raises(InputError, match=r"^publish_to = s3://bucket/prep can't be written: "):
        upload_publication(workspace, url)
    assert json.loads(store.objects[f"bucket/prep/{POINTER_FILE}"][0])["publication"] == "published/first"
    store.refuse = None
    assert upload_publication(workspace, url)
    assert json.loads(store.objects[f"bucket/prep/{POINTER_FILE}"][0])["publication"] == "published/second"
    assert store.objects["bucket/prep/published/second/reranker/model.safetensors"][0] == b"new"


def test_a_folder_that_several_machines_see_is_as_good(workspace: Workspace, tmp_path: Path) -> None:
    published(workspace, "first", b"weights")
    target = tmp_path / "shared" / "prep"
    for damage in (None, "", "[]"):
        if damage is not None:
            (target / POINTER_FILE).write_text(damage)
        assert upload_publication(workspace, target.as_uri())
        assert (target / "published/first/reranker/model.safetensors").read_bytes() == b"weights"
        assert json.loads((target / POINTER_FILE).read_text())["publication"] == "published/first"
    assert not upload_publication(workspace, target.as_uri())
    assert sorted(path.name for path in target.iterdir()) == [POINTER_FILE, "published"]


def test_a_publication_is_never_copied_onto_itself(workspace: Workspace) -> None:
    published(workspace, "first", b"weights")
    for place in (workspace.root, workspace.root.parent, workspace.published / "there"):
        with pytest.raises(InputError, match="holds the workspace, or lies in it"):
            upload_publication(workspace, place.as_uri())
    assert (workspace.current / "reranker" / "model.safetensors").read_bytes() == b"weights"
