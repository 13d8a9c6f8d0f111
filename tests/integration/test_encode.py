import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.hashing import hash_texts
from stages.core.schemas import CORPUS, QUERIES, write_table
from stages.embedding import lookup
from stages.embedding import stage as embedding_stage
from stages.embedding.encoder import EncoderSpec
from stages.embedding.encoder_specs import list_encoder_specs
from stages.embedding.lookup import VectorLookup, read_encodings, read_text_blocks
from stages.embedding.stage import Params, has_all_vectors, key_extras, run
from stages.embedding.vector_store import VectorStore
from tests.fakes import RecordedProgress


class FakeEncoder:
    """Its vector of a text is the text's length and its first letter; it counts what it is asked."""

    loaded = 0
    asked: ClassVar[list[list[str]]] = []
    breaks_after = 10**9
    holds: int | None = None
    max_batch_tokens: int | None = None

    def __init__(self, made: EncoderSpec, model: str) -> None:
        FakeEncoder.loaded += 1

    def encode(
        self, texts: Sequence[str], role: str, batch_tokens: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        FakeEncoder.asked.append(list(texts))
        for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
            if sum(map(len, FakeEncoder.asked)) > FakeEncoder.breaks_after:
                raise KeyboardInterrupt
            if self.holds and self.holds < batch_tokens:
                self.max_batch_tokens = self.holds
            yield np.array([i]), vector(texts[i])[None], len(texts[i])


def vector(text: str) -> np.ndarray:
    return np.array([len(text), ord(text[0])], np.float32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEncoder]:
    monkeypatch.setattr(embedding_stage, "Encoder", FakeEncoder)
    for name, value in (("loaded", 0), ("asked", []), ("breaks_after", 10**9), ("holds", None)):
        monkeypatch.setattr(FakeEncoder, name, value)
    return FakeEncoder


CORPUS_ROWS = {"doc_id": ["a", "b", "c"], "text": ["Red.", "Blue.", "Red."], "title": ["Sky", "", None]}
DOCUMENT_VECTORS = [vector(text).tolist() for text in ("Sky Red.", "Blue.", "Red.")]
QUERY_ROWS = {"query_id": ["1", "2"], "query": ["why", "Red."], "split": ["train"] * 2, "group": ["1", "2"]}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    paths = {"queries": tmp_path / "queries.parquet", "corpus": tmp_path / "corpus.parquet"}
    write_table(pl.DataFrame(QUERY_ROWS), QUERIES, paths["queries"])
    write_table(pl.DataFrame(CORPUS_ROWS), CORPUS, paths["corpus"])
    return paths


@pytest.fixture
def tools(tmp_path: Path) -> StageContext:
    return StageContext(RecordedProgress(), tmp_path / "scratch", tmp_path / "vectors", tmp_path / "logs")


def find_vectors(out: Path, tools: StageContext, number: int = 0) -> VectorLookup:
    inputs = {"encoder": out / "encoder.json", "text_hashes": out / "text_hashes.npy"}
    return VectorLookup(inputs, tools.vectors_dir, number)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_document_is_its_title_and_its_text(inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_TABLE_BATCH_ROWS", 2)
    assert list(read_text_blocks(inputs["corpus"], "document")) == [["Sky Red.", "Blue."], ["Red."]]
    assert list(read_text_blocks(inputs["queries"], "query")) == [["why", "Red."]]


def test_each_distinct_text_is_encoded_once(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    out = fresh(tmp_path / "out")
    summary = run(Params(dtype="float32"), inputs, out, tools)
    assert summary["queries"] == 2
    assert summary["documents"] == 3
    assert (summary["texts"], summary["n_encoded"], summary["n_cached"], summary["dimension"]) == (4, 4, 0, 2)
    assert fake.asked == [["why", "Red."], ["Sky Red.", "Blue."]]
    assert tools.progress.reports[-1] == (4, 4, "texts", 20)  # type: ignore[attr-defined]
    assert [tokens for *_, tokens in tools.progress.reports] == [4, 7, 15, 20]  # type: ignore[attr-defined]
    assert tools.progress.messages == [
        "4 texts to encode with sentence-transformers/all-MiniLM-L6-v2 in float32; 0 are stored already"
    ]  # type: ignore[attr-defined]
    rows = hash_texts(["why", "Red.", "Sky Red.", "Blue.", "Red."])
    assert np.load(out / "text_hashes.npy").tolist() == [rows.tolist()]

    vectors = find_vectors(out, tools)
    assert vectors.read_queries(np.array([1, 0])).tolist() == [vector("Red.").tolist(), vector("why").tolist()]
    assert vectors.read_documents(np.arange(3)).tolist() == DOCUMENT_VECTORS


def test_a_cache_hit_loads_no_model_and_gives_the_same_bytes(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    run(Params(), inputs, fresh(tmp_path / "one"), tools)
    summary = run(Params(), inputs, fresh(tmp_path / "two"), tools)
    assert (summary["n_encoded"], summary["n_cached"], fake.loaded) == (0, 4, 1)
    for name in ("encoder.json", "text_hashes.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_reduced_batch_size_is_logged_once(
    inputs: dict[str, Path],
    tools: StageContext,
    tmp_path: Path,
    fake: type[FakeEncoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake, "holds", 512)
    run(Params(), inputs, fresh(tmp_path / "out"), tools)
    (line,) = tools.progress.messages[1:]  # type: ignore[attr-defined]
    assert line == (
        "a batch did not fit into memory: batches have at most 512 tokens from now on. To start with that, set "
        "batch_tokens = 512 under [encode]."
    )


@pytest.mark.parametrize(
    ("stated", "given", "says"),
    [
        (
            "euclidean",
            {},
            "declares the euclidean similarity; cosine is used instead, because search is by inner product",
        ),
        ("manhattan", {}, "declares the manhattan similarity; cosine is used instead"),
        ("euclidean", {"similarity": "cosine"}, None),  # cosine is set explicitly
        ("cosine", {}, None),
        ("dot", {}, None),
        (None, {}, None),
    ],
)
def test_a_replaced_similarity_is_logged(
    inputs: dict[str, Path],
    tools: StageContext,
    tmp_path: Path,
    fake: type[FakeEncoder],
    stated: str | None,
    given: dict[str, str],
    says: str | None,
) -> None:
    model = fresh(tmp_path / "model")
    (model / "config.json").write_text("{}")
    if stated:
        (model / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": stated}))
    run(Params(model=str(model), **given), inputs, fresh(tmp_path / "out"), tools)  # type: ignore[arg-type]
    used = json.loads((tmp_path / "out" / "encoder.json").read_text())["similarity"]
    assert used == ("dot" if stated == "dot" else "cosine")
    messages = [line for line in tools.progress.messages if "similarity" in line]  # type: ignore[attr-defined]
    assert [says in line and str(model) in line for line in messages] == ([True] if says else [])
    run(Params(extra_models=(str(model),), **given), inputs, fresh(tmp_path / "extra_encoders"), tools)  # type: ignore[arg-type]
    again = [line for line in tools.progress.messages if "similarity" in line]  # type: ignore[attr-defined]
    replaced = stated in ("euclidean", "manhattan")  # further encoders go by their own, whatever the first is given
    assert len(again) - len(messages) == int(replaced)


def test_windows_smaller_than_the_tables_encode_the_same(
    inputs: dict[str, Path],
    tools: StageContext,
    tmp_path: Path,
    fake: type[FakeEncoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "_SORT_WINDOW_TEXTS", 1)
    monkeypatch.setattr(lookup, "_TABLE_BATCH_ROWS", 2)
    run(Params(), inputs, fresh(tmp_path / "out"), tools)
    assert fake.asked == [["why"], ["Red."], ["Sky Red."], ["Blue."]]
    assert find_vectors(tmp_path / "out", tools).read_documents(np.arange(3)).tolist() == DOCUMENT_VECTORS


def test_pieces_smaller_than_a_window_encode_the_same(
    inputs: dict[str, Path],
    tools: StageContext,
    tmp_path: Path,
    fake: type[FakeEncoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding_stage, "_BATCHES_PER_TASK", 1)
    run(Params(batch_tokens=1), inputs, fresh(tmp_path / "out"), tools)
    assert fake.asked == [["Red."], ["why"], ["Sky Red."], ["Blue."]]
    assert fake.loaded == 1
    assert find_vectors(tmp_path / "out", tools).read_documents(np.arange(3)).tolist() == DOCUMENT_VECTORS


def test_a_worker_with_other_model_files_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    made = list_encoder_specs(Params(model=str(tiny_model)))[0]
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "vocab.txt").write_text((other / "vocab.txt").read_text() + "new\n")
    embedding_stage.EncodeWorker(made, str(tiny_model), 64)
    with pytest.raises(InputError, match="not the same everywhere"):
        embedding_stage.EncodeWorker(made, str(other), 64)


def test_prompts_make_two_texts_of_one(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    summary = run(Params(query_prompt="query: "), inputs, fresh(tmp_path / "out"), tools)
    assert summary["texts"] == 5
    assert fake.asked == [["why", "Red."], ["Sky Red.", "Blue.", "Red."]]


def test_an_interrupted_run_resumes(
    inputs: dict[str, Path],
    tools: StageContext,
    tmp_path: Path,
    fake: type[FakeEncoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake, "breaks_after", 3)
    with pytest.raises(KeyboardInterrupt):
        run(Params(), inputs, fresh(tmp_path / "one"), tools)
    monkeypatch.setattr(fake, "breaks_after", 10**9)
    assert run(Params(), inputs, fresh(tmp_path / "two"), tools)["n_encoded"] == 2
    assert fake.asked[-1] == ["Sky Red.", "Blue."]


def test_damage_in_the_store_is_detected_and_repaired(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    out = fresh(tmp_path / "one")
    run(Params(), inputs, out, tools)
    assert has_all_vectors(out, tools)
    (segment,) = tools.vectors_dir.glob("*/*.npy")
    segment.write_bytes(segment.read_bytes()[:-1])
    assert run(Params(), inputs, fresh(tmp_path / "two"), tools)["n_encoded"] == 4
    assert tools.progress.messages[1:2] == ["1 damaged vector files are ignored; their texts are encoded again."]  # type: ignore[attr-defined]
    assert has_all_vectors(out, tools)
    segment.write_bytes(b"")
    assert not has_all_vectors(out, tools)
    assert not has_all_vectors(out, tools)


def test_rows_keep_their_vectors_when_the_store_grows_and_is_repaired(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    out = fresh(tmp_path / "one")
    run(Params(), inputs, out, tools)
    (first_segment,) = tools.vectors_dir.glob("*/*.npy")
    other_texts = [f"other {i}" for i in range(9)]
    for text in other_texts:  # nine more segments: their names put some of them before the first one
        VectorStore(first_segment.parent).append(hash_texts([text]), vector(text)[None])
    assert find_vectors(out, tools).read_documents(np.arange(3)).tolist() == DOCUMENT_VECTORS
    first_segment.write_bytes(b"")
    run(Params(), inputs, fresh(tmp_path / "two"), tools)
    assert find_vectors(out, tools).read_documents(np.arange(3)).tolist() == DOCUMENT_VECTORS


def test_the_encoder_s_folder_describes_the_encoder(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    run(Params(), inputs, fresh(tmp_path / "out"), tools)
    key = key_extras(Params())["encoder"]
    described = json.loads((tools.vectors_dir / key / "encoder_spec.json").read_text())
    assert described["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert json.loads((tmp_path / "out/encoder.json").read_text())["encoder_key"] == key
    assert len(VectorStore(tools.vectors_dir / key)) == 4


def test_further_encoders_have_stores_of_their_own(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder], tiny_model: Path
) -> None:
    params = Params(query_prompt="query: ", extra_models=(str(tiny_model),))
    out = fresh(tmp_path / "out")
    summary = run(params, inputs, out, tools)
    assert summary["texts"] == 5
    # the second has no prompts, so a text that is a query and a document is one text
    other = summary["extra_encoders"][f"dense2 {tiny_model.name}"]
    assert other.pop("encoder_fit")["queries"]["letter_share"] == 1.0  # its vocabulary is the letters
    assert other == {"n_encoded": 4, "n_cached": 0, "dimension": 2}
    assert fake.loaded == 2
    first, second = read_encodings(out / "encoder.json")
    named = key_extras(params)
    assert named == {
        "encoder": first["encoder_key"],
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "encoder2": second["encoder_key"],
        "model2": tiny_model.name,
    }
    assert np.load(out / "text_hashes.npy").shape == (2, 5, 16)
    assert (first["texts"], second["texts"]) == (5, 4)
    for number in (0, 1):
        vectors = find_vectors(out, tools, number)
        assert vectors.store.folder == tools.vectors_dir / (first, second)[number]["encoder_key"]
        assert vectors.read_queries(np.arange(2)).tolist() == [vector("why").tolist(), vector("Red.").tolist()]
    assert str(tmp_path) not in (out / "encoder.json").read_text()


def test_without_extra_encoders_the_summary_does_not_mention_them(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder]
) -> None:
    summary = run(Params(), inputs, fresh(tmp_path / "out"), tools)
    assert set(key_extras(Params())) == {"encoder", "model"}
    assert "extra_encoders" not in summary
    assert "extra_encoders" not in json.loads((tmp_path / "out/encoder.json").read_text())


@pytest.mark.parametrize("which", [0, 1])
def test_damage_in_any_store_is_noticed(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, fake: type[FakeEncoder], tiny_model: Path, which: int
) -> None:
    out = fresh(tmp_path / "out")
    run(Params(extra_models=(str(tiny_model),)), inputs, out, tools)
    assert has_all_vectors(out, tools)
    (segment,) = (tools.vectors_dir / read_encodings(out / "encoder.json")[which]["encoder_key"]).glob("*.npy")
    segment.write_bytes(b"")
    assert not has_all_vectors(out, tools)


def test_the_same_encoder_twice_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="is given twice"):
        key_extras(Params(model=str(tiny_model), extra_models=(str(tiny_model),)))
    with pytest.raises(InputError, match="is given twice"):
        key_extras(Params(extra_models=(str(tiny_model), str(tiny_model))))
    assert len(key_extras(Params(model=str(tiny_model), query_prompt="q: ", extra_models=(str(tiny_model),)))) == 4


def test_identity_loads_no_torch() -> None:
    code = "import sys; from stages.embedding.stage import *; key_extras(Params()); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_real_model_from_tables_to_vectors(
    inputs: dict[str, Path], tools: StageContext, tmp_path: Path, tiny_model: Path
) -> None:
    """An incremental run holds the same bits as a run from nothing."""
    params = Params(model=str(tiny_model))
    write_table(pl.DataFrame(CORPUS_ROWS).head(1), CORPUS, inputs["corpus"])
    run(params, inputs, fresh(tmp_path / "one"), tools)
    write_table(pl.DataFrame(CORPUS_ROWS), CORPUS, inputs["corpus"])
    assert run(params, inputs, fresh(tmp_path / "two"), tools)["n_encoded"] == 1
    clean = StageContext(RecordedProgress(), tmp_path / "scratch", tmp_path / "elsewhere", tmp_path / "logs")
    assert run(params, inputs, fresh(tmp_path / "three"), clean)["n_encoded"] == 4
    grown = find_vectors(tmp_path / "two", tools).read_documents(np.arange(3))
    assert grown.shape == (3, 32)
    assert np.array_equal(grown, find_vectors(tmp_path / "three", clean).read_documents(np.arange(3)))
    assert str(tmp_path) not in (tmp_path / "two/encoder.json").read_text()
