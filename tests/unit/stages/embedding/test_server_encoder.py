"""Encoders behind a URL, against a server of our own that misbehaves.

Its vector of a text is (length of the text, 1 as a query or 2 as a document or 0 if the request does not say, 2).
"""

import base64
import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.schemas import CORPUS, QUERIES, write_table
from stages.embedding import server_encoder
from stages.embedding.encoder import EncoderSpec
from stages.embedding.lookup import VectorLookup
from stages.embedding.server_encoder import (
    PROBE_TEXT,
    ServerEncoder,
    find_stored_spec,
    has_unit_length,
    identify_server,
    make_server_spec,
)
from stages.embedding.stage import Params, find_missing_texts, run, server_key_extras
from tests.fakes import APIServer, Body, RecordedProgress, Reply

SIDES = {"query": 1.0, "passage": 2.0}


def vector(text: str, body: Body) -> list[float]:
    return [float(len(text)), SIDES.get(body.get("input_type", ""), 0.0), 2.0]


def answer(body: Body, **changed: Any) -> Reply:
    data = [
        {"object": "embedding", "index": n, "embedding": vector(text, body)} for n, text in enumerate(body["input"])
    ]
    return 200, json.dumps({"data": data, "usage": {"prompt_tokens": 10 * len(data)}} | changed)


def well(body: Body, before: int) -> Reply:
    return answer(body)


def refusal(status: int, message: str, **headers: str) -> Reply:
    return status, json.dumps({"error": {"message": message}}), {**headers}


@pytest.fixture
def server() -> Iterator[APIServer]:
    made = APIServer(well)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key from outside, no long pauses between the attempts, and no answer of an earlier test."""
    for name in server_encoder.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    forget_probes()


def forget_probes() -> None:
    server_encoder._probes.clear()


def identify(server: APIServer, store: Path, **settings: Any) -> EncoderSpec:
    return identify_server(make_server_spec(server.url, "m", **{"similarity": "dot", **settings}), store)


def encode(spec: EncoderSpec, texts: list[str], role: str = "query", batch_tokens: int = 4096) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for rows, vectors, _ in ServerEncoder(spec).encode(texts, role, batch_tokens):
        found |= dict(zip(rows.tolist(), vectors.tolist(), strict=True))
    return [found[i] for i in range(len(texts))]


def sent(server: APIServer) -> list[list[str]]:
    """The texts of each request, those of the probes left out."""
    return [body["input"] for body in server.bodies if PROBE_TEXT not in body["input"][0]]


def test_queries_and_documents_are_told_apart_by_prompts(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path, query_prompt="q: ", document_prompt="d: ")
    assert encode(spec, ["a", "bb"]) == [[4, 0, 2], [5, 0, 2]]
    assert encode(spec, ["ccc"], "document") == [[6, 0, 2]]
    assert sent(server) == [["q: a", "q: bb"], ["d: ccc"]]
    assert server.bodies[-1] == {"model": "m", "input": ["d: ccc"], "encoding_format": "float"}
    assert server.heads[-1][0] == "/v1/embeddings"


def test_queries_and_documents_are_told_apart_by_input_type(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path, input_type="passage")
    assert encode(spec, ["a"]) == [[1, 1, 2]]
    assert encode(spec, ["a"], "document") == [[1, 2, 2]]
    assert spec.hash_prefix("query") != spec.hash_prefix("document"), "one text has two vectors"
    assert [body["input_type"] for body in server.bodies] == ["query", "passage", "query", "passage"]


def test_queries_and_documents_are_told_apart_by_the_model(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path, document_model="m-doc")
    encode(spec, ["a"])
    encode(spec, ["b"], "document")
    assert [body["model"] for body in server.bodies] == ["m", "m-doc", "m", "m-doc"]
    assert spec.hash_prefix("query") != spec.hash_prefix("document")


def test_a_request_holds_so_many_texts_and_bytes(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    assert encode(spec, [f"{n:03}" for n in range(200)]) == [[3, 0, 2]] * 200
    assert sorted(map(len, sent(server))) == [8, 64, 64, 64]
    server.bodies.clear()
    encode(spec, ["x" * 40] * 6, batch_tokens=20)  # 80 bytes
    assert list(map(len, sent(server))) == [2, 2, 2]


def test_the_tokens_are_those_that_the_server_counts(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    assert [tokens for *_, tokens in ServerEncoder(spec).encode(["a", "b"], "query", 4096)] == [20]
    server.behave = lambda body, before: answer(body, usage=None)
    assert [tokens for *_, tokens in ServerEncoder(spec).encode(["a", "b"], "query", 4096)] == [0]


def test_cosine_vectors_get_length_1(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path, similarity="auto")
    assert not has_unit_length(spec)
    assert encode(spec, ["a"]) == [pytest.approx([1 / 5**0.5, 0, 2 / 5**0.5])]
    forget_probes()
    server.behave = lambda body, before: answer(body, data=[{"index": 0, "embedding": [0.6, 0.8]}])
    assert has_unit_length(identify(server, tmp_path, similarity="auto"))


def reorder(body: Body, before: int) -> Reply:
    status, text = answer(body)[:2]
    return status, json.dumps(json.loads(text) | {"data": json.loads(text)["data"][::-1]})


def in_base64(body: Body, before: int) -> Reply:
    data = [{"embedding": base64.b64encode(struct.pack("<3f", *vector(text, body))).decode()} for text in body["input"]]
    return answer(body, data=data)


def small_batches(body: Body, before: int) -> Reply:
    return answer(body) if len(body["input"]) <= 2 else refusal(413, "batch size 3 > maximum allowed batch size 2")


def forgetful(body: Body, before: int) -> Reply:
    """Leaves out one vector of each request of several."""
    status, text = answer(body)[:2]
    data = json.loads(text)["data"]
    return status, json.dumps({"data": data[1:] or data})


@pytest.mark.parametrize("behave", [reorder, in_base64, small_batches, forgetful])
def test_what_a_server_may_do(behave: Callable[[Body, int], Reply], server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    server.behave = behave
    assert encode(spec, ["a", "bb", "ccc", "dddd", "eeeee"]) == [[n, 0, 2] for n in (1, 2, 3, 4, 5)]


def test_a_server_that_takes_fewer_texts_is_refused_once(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    server.behave = lambda body, before: answer(body) if len(body["input"]) <= 32 else refusal(422, "at most 32")
    encoder = ServerEncoder(spec)
    list(encoder.encode(["a"] * 64, "query", 4096))
    list(encoder.encode(["b"] * 64, "query", 4096))
    assert list(map(len, sent(server))) == [64, 32, 32, 32, 32]


@pytest.mark.parametrize(
    "replies",
    [
        [refusal(429, "slow down", **{"Retry-After": "0.05"})],
        [(500, "oops", {"Content-Type": "text/plain"}), (503, "")],
        [(502, "<html>bad gateway</html>", {"Content-Type": "text/html"})] * 7,
    ],
    ids=["429", "500", "502 seven times"],
)
def test_a_server_that_stumbles_is_asked_again(replies: list[Reply], server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    n_probes = len(server.bodies)
    server.behave = lambda body, before: (
        replies[before - n_probes] if before - n_probes < len(replies) else answer(body)
    )
    assert encode(spec, ["a"]) == [[1, 0, 2]]
    assert len(server.bodies) == n_probes + len(replies) + 1


def test_a_rate_limit_is_honoured(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    times: list[float] = []

    def limited(body: Body, before: int) -> Reply:
        times.append(time.monotonic())
        return refusal(429, "slow down", **{"Retry-After": "0.5"}) if len(times) == 1 else answer(body)

    server.behave = limited
    assert encode(spec, ["a"]) == [[1, 0, 2]]
    assert times[1] - times[0] >= 0.5, "without the header it is 0.02 s here"


def spoil(spoiled: Callable[[str], Any]) -> Callable[[Body, int], Reply]:
    """Gives the text BAD this vector."""

    def behave(body: Body, before: int) -> Reply:
        status, text = answer(body)[:2]
        found = json.loads(text)
        for item, given in zip(found["data"], body["input"], strict=True):
            item["embedding"] = spoiled(given) if given == "BAD" else item["embedding"]
        return status, json.dumps(found)

    return behave


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (spoil(lambda text: [1.0, float("nan"), 2.0]), "not finite"),
        (spoil(lambda text: [1.0, None, 2.0]), "not finite"),
        (spoil(lambda text: [0.0, 0.0, 0.0]), "zeros"),
        (spoil(lambda text: []), "no vector"),
        (spoil(lambda text: "####"), "no vector"),
        (spoil(lambda text: {"values": 1}), "no vector"),
        (spoil(lambda text: [1.0, 2.0]), "2 dimensions, and others with 3.*Is one model behind the URL"),
        (lambda body, before: refusal(400, "9000 tokens > 8192") if "BAD" in body["input"] else answer(body),
         "9000 tokens > 8192.*chunk_words"),
        (lambda body, before: refusal(500, "inference failed") if "BAD" in body["input"] else answer(body),
         "inference failed.*kept"),
    ],
    ids=["nan", "null", "zeros", "empty", "base64", "object", "dimensions", "400", "500"],
)  # fmt: skip
def test_an_error_names_the_text(
    behave: Callable[[Body, int], Reply], words: str, server: APIServer, tmp_path: Path
) -> None:
    spec = identify(server, tmp_path)
    server.behave = behave
    with pytest.raises(InputError, match=rf"m at {server.url}.*the text 'BAD'.*{words}"):
        encode(spec, ["a", "bb", "BAD", "dddd", "eeeee"])


def test_what_was_answered_is_yielded_before_the_error(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    server.behave = lambda body, before: refusal(401, "who?") if "b" in body["input"] else answer(body)
    found = ServerEncoder(spec).encode(["a" * 80, "b"], "query", 20)
    assert next(found)[0].tolist() == [0]
    with pytest.raises(InputError, match="the text 'b'"):
        next(found)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (lambda body, before: refusal(401, "Incorrect API key: sk-secret-1"), "401.*PREP_ENCODE_API_KEY or OPENAI"),
        (lambda body, before: refusal(403, "no"), "may use this model"),
        (lambda body, before: refusal(404, "The model `m` does not exist"), r"does not exist.*Check model .*/models"),
        (lambda body, before: refusal(429, "You exceeded your quota"), "quota.*run again later"),
        (lambda body, before: refusal(500, "CUDA out of memory"), "CUDA out of memory"),
        (lambda body, before: answer(body, data=[]), "0 vectors"),
        (lambda body, before: answer(body, data=[{"index": 7, "embedding": [1.0]}]), r"1 vectors with.*\[7\]"),
        (lambda body, before: (200, "{}"), "no list of embeddings.*/v1"),
        (lambda body, before: (200, "<html>Welcome</html>", {"Content-Type": "text/html"}), "<html>.*/v1"),
    ],
    ids=["401", "403", "404", "429", "500", "empty", "index", "object", "html"],
)
def test_a_server_that_can_not_begin_says_why(
    behave: Callable[[Body, int], Reply],
    words: str,
    server: APIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    server.behave = behave
    with pytest.raises(InputError, match=rf"(?s)m at {server.url}.*{words}") as found:
        identify(server, tmp_path)
    assert "sk-secret" not in str(found.value)


def test_the_key_is_that_of_the_environment(server: APIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-judge")
    identify(server, tmp_path)
    forget_probes()
    monkeypatch.setenv("PREP_ENCODE_API_KEY", "sk-encoder")
    identify(server, tmp_path)
    assert [{k.lower(): v for k, v in head.items()}["authorization"] for _, head in server.heads] == [
        "Bearer sk-judge",
        "Bearer sk-encoder",
    ]


def test_queries_and_documents_of_different_dimensions_are_refused(server: APIServer, tmp_path: Path) -> None:
    data = {"m": [{"embedding": [1.0]}], "m-doc": [{"embedding": [1.0, 2.0]}]}
    server.behave = lambda body, before: answer(body, data=data[body["model"]])
    with pytest.raises(InputError, match="queries 1 dimensions and documents 2"):
        identify(server, tmp_path, document_model="m-doc")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost:8000/v1"}, "no URL of an API"),
        ({"url": "http://user:pass@host/v1"}, "holds a password.*PREP_ENCODE_API_KEY"),
        ({"url": "http://host/v1?key=1"}, "holds a password or a query"),
        ({"url": "http://host/v1", "model": " "}, "url needs a model"),
        ({"url": "http://host/v1", "max_length": 64}, "max_length.*chunk_words"),
        ({"input_type": "passage"}, "input_type needs a url"),
        ({"document_model": "m"}, "document_model needs a url"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Params(**settings)


def test_the_endpoint_counts_as_the_url() -> None:
    assert make_server_spec("http://h/v1/embeddings/", "m") == make_server_spec("http://h/v1", "m")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    paths = {"queries": tmp_path / "queries.parquet", "corpus": tmp_path / "corpus.parquet"}
    queries = {"query_id": ["1", "2"], "query": ["why", "what"], "split": ["train"] * 2, "group": ["1", "2"]}
    write_table(pl.DataFrame(queries), QUERIES, paths["queries"])
    documents = {"doc_id": ["a", "b"], "text": ["Red.", "why"], "title": [None, None]}
    write_table(pl.DataFrame(documents, schema_overrides={"title": pl.String}), CORPUS, paths["corpus"])
    return paths


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return StageContext(RecordedProgress(), vectors=tmp_path / "vectors")


def messages(context: StageContext) -> list[str]:
    return context.progress.messages  # type: ignore[attr-defined,no-any-return]


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_step_stores_vectors_of_a_server_like_any(
    server: APIServer, tmp_path: Path, inputs: dict[str, Path], context: StageContext
) -> None:
    params = Params(url=server.url, model="m", input_type="passage", similarity="dot")
    out = fresh(tmp_path / "out")
    summary = run(params, inputs, out, context)
    assert (summary["n_encoded"], summary["n_cached"], summary["dimension"], summary["model"]) == (4, 0, 3, "m")
    assert json.loads((out / "encoder.json").read_text())["url"] == server.url
    lookup = VectorLookup(
        {"encoder": out / "encoder.json", "text_hashes": out / "text_hashes.npy"}, context.vectors_dir
    )
    assert lookup.read_queries(np.arange(2)).tolist() == [[3, 1, 2], [4, 1, 2]]
    assert lookup.read_documents(np.arange(2)).tolist() == [[4, 2, 2], [3, 2, 2]]
    server.bodies.clear()
    assert run(params, inputs, fresh(tmp_path / "again"), context)["n_encoded"] == 0
    assert sent(server) == []


def test_vectors_that_are_scaled_are_logged_once(
    server: APIServer, tmp_path: Path, inputs: dict[str, Path], context: StageContext
) -> None:
    run(Params(url=server.url, model="m"), inputs, fresh(tmp_path / "out"), context)
    assert messages(context) == [
        f"the vectors of m at {server.url} do not have length 1; they are scaled to it",
        f"3 texts to encode with m at {server.url}; 0 are stored already",
    ]


def drift(share: float) -> Callable[[Body, int], Reply]:
    """A server whose vectors differ by a share of their length."""

    def behave(body: Body, before: int) -> Reply:
        data = [{"embedding": [len(text), 0, 2 + share * np.hypot(len(text), 2)]} for text in body["input"]]
        return answer(body, data=data)

    return behave


def test_a_server_is_the_same_within_the_noise_of_its_arithmetic(
    server: APIServer, tmp_path: Path, inputs: dict[str, Path], context: StageContext
) -> None:
    params = Params(url=server.url, model="m", similarity="dot")
    extras = server_key_extras(params, context)
    assert extras["model"] == f"m at {server.url}"
    assert extras["dimension"] == "3"
    run(params, inputs, fresh(tmp_path / "out"), context)
    for share in (0.0, 0.004, 0.029):
        forget_probes()
        server.behave = drift(share)
        assert server_key_extras(params, context) == extras
    forget_probes()
    server.behave = drift(0.05)
    changed = server_key_extras(params, context)
    assert changed["encoder"] != extras["encoder"]
    assert run(params, inputs, fresh(tmp_path / "changed"), context)["n_encoded"] == 3, "all with the new model"
    forget_probes()
    server.behave = well
    assert server_key_extras(params, context) == extras, "the old model is back, and its vectors are there"


def test_a_model_that_changes_during_a_run_is_noticed(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    forget_probes()
    server.behave = drift(0.5)
    with pytest.raises(InputError, match=r"its model was changed\. Run again"):
        encode(spec, ["a"])


@pytest.mark.parametrize(
    "changed", [{"document_prompt": "d: "}, {"input_type": "passage"}, {"document_model": "x"}, {"similarity": "auto"}]
)
def test_every_setting_is_part_of_the_identity(changed: dict[str, str], server: APIServer, tmp_path: Path) -> None:
    server.behave = drift(0)  # no setting changes a vector
    assert identify(server, tmp_path, **changed).key != identify(server, tmp_path).key


def test_the_key_does_not_depend_on_the_digits_of_the_probe(server: APIServer, tmp_path: Path) -> None:
    spec = identify(server, tmp_path)
    assert spec.server is not None
    other = replace(spec, server=replace(spec.server, probe=(1.0, 2.0, 3.0)))
    assert other.key == spec.key
    assert replace(spec, weights="probe other").key != spec.key


def test_status_and_plan_ask_no_server(
    server: APIServer, tmp_path: Path, inputs: dict[str, Path], context: StageContext
) -> None:
    params = Params(url=server.url, model="m")
    offline = replace(context, may_ask_servers=False)
    assert server_key_extras(params, offline)["dimension"] == "0"
    assert server.bodies == []
    extras = server_key_extras(params, context)
    run(params, inputs, fresh(tmp_path / "out"), context)
    server.close()
    forget_probes()
    assert server_key_extras(params, offline) == extras
    ((spec, new),) = find_missing_texts(params, inputs, context.vectors_dir)
    assert spec == find_stored_spec(make_server_spec(server.url, "m"), context.vectors_dir)
    assert [rows.tolist() for rows in new.values()] == [[False, False], [False, False]]


def test_a_server_that_is_away_is_what_it_was(
    server: APIServer, tmp_path: Path, inputs: dict[str, Path], context: StageContext
) -> None:
    params = Params(url=server.url, model="m")
    extras = server_key_extras(params, context)
    run(params, inputs, fresh(tmp_path / "out"), context)
    server.close()
    forget_probes()
    messages(context).clear()
    assert server_key_extras(params, context) == extras
    (line,) = messages(context)
    assert line.endswith("The vectors that it gave earlier are used.")
    assert run(params, inputs, fresh(tmp_path / "again"), context)["n_encoded"] == 0
    write_table(
        pl.DataFrame({"query_id": ["3"], "query": ["new"], "split": ["train"], "group": ["3"]}),
        QUERIES,
        inputs["queries"],
    )
    with pytest.raises(InputError, match=r"[Rr]efused.*Is the server running, and is url its URL"):
        run(params, inputs, fresh(tmp_path / "new"), context)


def test_a_server_that_was_never_there_is_an_error(server: APIServer, context: StageContext) -> None:
    server.close()
    with pytest.raises(InputError, match="Is the server running"):
        server_key_extras(Params(url=server.url, model="m"), context)
