import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.core.errors import InputError
from stages.core.model_files import DEFAULT_ENCODER
from stages.embedding.encoder import Encoder, _max_positions, l2_normalise_vectors, resolve_encoder_spec
from stages.embedding.stage import Params

WORDS = ["the", "river", "runs", "past", "an", "old", "mill", "where", "bread", "unbelievably", "1848", "who", "built"]


def model_folder(folder: Path, settings: dict[str, object] | None = None) -> str:
    """A folder that passes for a model until it is loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return str(folder)


def test_prompts_and_similarity_are_the_models_own_unless_given(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: ", "passage": "p: ", "other": "o: "}, "similarity_fn_name": "dot"}
    model = model_folder(tmp_path / "model", settings)
    own = resolve_encoder_spec(model)
    assert (own.query_prompt, own.document_prompt, own.similarity) == ("q: ", "p: ", "dot")
    given = resolve_encoder_spec(model, query_prompt="", document_prompt="d: ", similarity="cosine")
    assert (given.query_prompt, given.document_prompt, given.similarity) == ("", "d: ", "cosine")
    assert (given.hash_prefix("query"), given.hash_prefix("document")) == ("", "d: ")
    plain = resolve_encoder_spec(model_folder(tmp_path / "plain"))
    assert (plain.query_prompt, plain.document_prompt, plain.similarity) == ("", "", "cosine")


def test_the_number_format_is_the_one_that_the_device_is_fast_in_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path / "model")
    monkeypatch.setattr("stages.embedding.encoder.should_use_bfloat16", lambda device, dtype: device == "cuda")
    found = [resolve_encoder_spec(model, device=device) for device in ("cpu", "cuda")]
    assert [one.dtype for one in found] == ["float32", "bfloat16"]
    assert (
        found[1].key
        == resolve_encoder_spec(model, device="cuda", dtype="bfloat16").key
        != resolve_encoder_spec(model, dtype="bfloat16").key
    )
    assert resolve_encoder_spec(model, device="cuda", dtype="float32").dtype == "float32"


def test_the_key_depends_on_the_model_s_content_and_not_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path / "model")
    moved = str(shutil.copytree(model, tmp_path / "moved"))
    monkeypatch.setattr("stages.embedding.encoder.should_use_bfloat16", lambda device, dtype: False)
    base = resolve_encoder_spec(model)
    assert resolve_encoder_spec(moved).key == base.key
    assert (base.model, resolve_encoder_spec(moved).model) == ("model", "moved")
    changed = [
        resolve_encoder_spec(model, query_prompt="q: "),
        resolve_encoder_spec(model, document_prompt="q: "),
        resolve_encoder_spec(model, max_length=64),
        resolve_encoder_spec(model, dtype="bfloat16"),
        resolve_encoder_spec(model, device="cuda"),
        resolve_encoder_spec(model, similarity="dot"),
    ]
    (Path(moved) / "config.json").write_text("{ }")
    changed.append(resolve_encoder_spec(moved))
    assert len({base.key, *(one.key for one in changed)}) == 8


def test_a_routed_model_hashes_queries_and_documents_apart(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    (Path(model) / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Router"}]))
    routed = resolve_encoder_spec(model)
    assert routed.hash_prefix("query") != routed.hash_prefix("document")


def test_a_broken_settings_file_is_an_input_error(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    (Path(model) / "modules.json").write_text("[{")
    with pytest.raises(InputError, match=r"modules\.json is not readable"):
        resolve_encoder_spec(model)


def test_rows_are_scaled_each_by_itself_and_zeros_stay() -> None:
    assert l2_normalise_vectors(np.array([[3, 4], [0, 0]], np.float32)).tolist() == [
        [np.float32(0.6), np.float32(0.8)],
        [0, 0],
    ]


def test_a_model_that_cannot_be_loaded_is_an_input_error(tmp_path: Path, tiny_model: Path) -> None:
    missing = shutil.copytree(tiny_model, tmp_path / "missing")
    (missing / "model.safetensors").unlink()
    cut = shutil.copytree(tiny_model, tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    for folder in (missing, cut):
        with pytest.raises(InputError, match="could not be loaded"):
            Encoder(resolve_encoder_spec(str(folder)), str(folder))


def test_weights_that_give_no_number_are_an_input_error(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="no finite vector for the text 'old mill'"):
        all_vectors(Encoder(resolve_encoder_spec(str(folder)), str(folder)), ["old mill"])


def all_vectors(encoder: Encoder, texts: Sequence[str], role: str = "document", batch_tokens: int = 2048) -> np.ndarray:
    out = np.full((len(texts), 0), np.nan, np.float32)
    for positions, vectors, _ in encoder.encode(texts, role, batch_tokens):
        out = out if out.shape[1] else np.full((len(texts), vectors.shape[1]), np.nan, np.float32)
        assert np.isnan(out[positions]).all()
        out[positions] = vectors
    assert not np.isnan(out).any()
    return out


def sentences(count: int) -> list[str]:
    """Texts of 1 to 300 words: short ones, lengths on and off the padding's steps, and some past the model's limit."""
    random = np.random.default_rng(0)
    lengths = [1, 2, 3, 6, 7, 14, 15, 300, *random.integers(1, 50, count - 8)]
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


@pytest.fixture(scope="module")
def default_encoder() -> Encoder:
    return Encoder(resolve_encoder_spec(DEFAULT_ENCODER, dtype="float32"), DEFAULT_ENCODER)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_does_not_depend_on_the_batch(dtype: str, default_encoder: Encoder) -> None:
    import torch

    if dtype == "bfloat16":  # the one that `auto` takes where the CPU is made for it
        default_encoder = Encoder(resolve_encoder_spec(DEFAULT_ENCODER, dtype=dtype), DEFAULT_ENCODER)
    texts = sentences(30)
    vectors = all_vectors(default_encoder, texts)
    order = np.random.default_rng(1).permutation(len(texts))
    assert np.array_equal(all_vectors(default_encoder, [texts[i] for i in order]), vectors[order])
    assert np.array_equal(all_vectors(default_encoder, texts[4:15], batch_tokens=1), vectors[4:15])
    for i in (0, 1, 5, 20):
        assert np.array_equal(all_vectors(default_encoder, texts[i : i + 1]), vectors[i : i + 1])
    assert np.array_equal(all_vectors(default_encoder, [texts[3]] * 9), np.tile(vectors[3], (9, 1)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert np.array_equal(all_vectors(default_encoder, texts[8:20]), vectors[8:20])
    finally:
        torch.set_num_threads(threads)


def test_vectors_are_those_of_sentence_transformers(default_encoder: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    from stages.core.model_files import resolve_model

    texts = sentences(12)
    theirs = SentenceTransformer(str(resolve_model(DEFAULT_ENCODER)), device="cpu").encode_document(texts)
    assert np.abs(all_vectors(default_encoder, texts) - theirs).max() < 1e-6


def test_a_layer_on_whole_texts_does_not_see_how_many_there_are(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    torch.manual_seed(0)
    plain = SentenceTransformer(str(tiny_model), device="cpu")
    SentenceTransformer(modules=[*plain, Dense(32, 48)], device="cpu").save(str(tmp_path / "dense"))
    encoder = Encoder(resolve_encoder_spec(str(tmp_path / "dense")), str(tmp_path / "dense"))
    texts = ["a b c", "d e", "c d e", "b", "x y z", "s t u", "h i", "m n o", "k"]
    vectors = all_vectors(encoder, texts)
    assert vectors.shape == (9, 48)
    for count in (1, 2, 3, 7):
        assert np.array_equal(all_vectors(encoder, texts[:count]), vectors[:count])


def test_the_prompt_belongs_to_its_role(tiny_model: Path) -> None:
    name = str(tiny_model)
    prompted, plain = (
        Encoder(resolve_encoder_spec(name, query_prompt="ask: "), name),
        Encoder(resolve_encoder_spec(name), name),
    )
    assert np.array_equal(all_vectors(prompted, ["a b"], role="query"), all_vectors(plain, ["ask: a b"], role="query"))
    assert np.array_equal(all_vectors(prompted, ["a b"]), all_vectors(plain, ["a b"], role="query"))


def test_tokens_beyond_max_length_are_ignored(tiny_model: Path) -> None:
    encoder = Encoder(resolve_encoder_spec(str(tiny_model), max_length=13), str(tiny_model))
    letters = " ".join("abcdefghijklmnopq")
    eleven, ten = letters[:21], letters[:19]  # 13 tokens are 11 letters between two marks
    assert np.array_equal(all_vectors(encoder, [letters]), all_vectors(encoder, [eleven]))
    assert not np.array_equal(all_vectors(encoder, [letters]), all_vectors(encoder, [ten]))


def test_the_limit_of_tokens_is_at_most_the_models(tiny_model: Path) -> None:
    name = str(tiny_model)
    letters = " ".join(["a"] * 500)
    assert all_vectors(Encoder(resolve_encoder_spec(name, max_length=128), name), [letters]).shape == (1, 32)
    assert all_vectors(Encoder(resolve_encoder_spec(name, max_length=4), name), [letters]).shape == (1, 32)
    with pytest.raises(InputError, match=r"max_length = 129: the encoder .* reads at most 128 tokens"):
        Encoder(resolve_encoder_spec(name, max_length=129), name)
    with pytest.raises(ValidationError):
        Params(max_length=3)


def test_positions_behind_the_padding_tokens_do_not_count() -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=10, max_position_embeddings=66, pad_token_id=1, **sizes)
    assert _max_positions(RobertaModel(config)) == 64


def test_vectors_are_scaled_for_cosine_and_left_alone_for_dot(tiny_model: Path) -> None:
    name = str(tiny_model)
    cosine, dot = (
        all_vectors(Encoder(resolve_encoder_spec(name, similarity=s), name), ["a b c"]) for s in ("cosine", "dot")
    )
    assert np.linalg.norm(cosine) == pytest.approx(1)
    assert np.linalg.norm(dot) > 1.1
    assert np.array_equal(cosine, l2_normalise_vectors(dot))


FULL = """
import resource, sys
import numpy as np, torch
from stages.embedding.encoder import Encoder, resolve_encoder_spec

torch.set_num_threads(1)
name, texts = sys.argv[1], [f"the old mill {i} " * 120 for i in range(300)]
encoder = Encoder(resolve_encoder_spec(name, dtype="float32"), name)
few = dict((int(i), v) for at, vectors, _ in encoder.encode(texts, "document", 2048) for i, v in zip(at, vectors))
assert encoder.max_batch_tokens is None
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20),) * 2)
many = dict((int(i), v) for at, vectors, _ in encoder.encode(texts, "document", 10**7) for i, v in zip(at, vectors))
assert len(many) == len(few) == 300 and all(np.array_equal(few[i], many[i]) for i in few)
print(encoder.max_batch_tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_batch_that_the_memory_does_not_hold_is_halved_until_it_does_with_the_same_vectors(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    wide = shutil.copytree(tiny_model, tmp_path / "wide")  # needs far more memory for its layers than for tokens
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 4096}
    BertModel(BertConfig.from_pretrained(wide, **sizes)).save_pretrained(wide)
    done = subprocess.run([sys.executable, "-c", FULL, str(wide)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 2048 <= int(done.stdout) < 300 * 128


POISONED = """
import resource, sys
import numpy as np, torch
from stages.embedding.encoder import Encoder, resolve_encoder_spec

name, texts = sys.argv[1], [f"the old mill {i}" for i in range(40)]
encoder = Encoder(resolve_encoder_spec(name, dtype="float32"), name)
forward, before = encoder._forward, resource.getrlimit(resource.RLIMIT_AS)

def full(*arguments):
    encoder._forward = forward
    torch.relu(torch.ones(512, 512) @ torch.ones(512, 512))  # threads and their local data are there before the limit
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, before[1]))
    try:
        torch.nn.functional.gelu(torch.ones(3, 5, 7))
    except RuntimeError as error:
        assert str(error) == "could not create a primitive"
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

encoder._forward = full
few = dict((int(i), v) for at, vectors, _ in encoder.encode(texts, "document", 512) for i, v in zip(at, vectors))
fitted, encoder.max_batch_tokens = encoder.max_batch_tokens, None
many = dict((int(i), v) for at, vectors, _ in encoder.encode(texts, "document", 512) for i, v in zip(at, vectors))
assert encoder.max_batch_tokens is None and len(few) == len(many) == 40
assert all(np.array_equal(few[i], many[i]) for i in few)
print(fitted)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="oneDNN writes code for x86-64's processors"
)
def test_no_memory_for_the_code_that_onednn_writes_is_no_memory_once_and_not_ever_after(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POISONED, str(tiny_model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 256


def test_one_text_that_the_memory_does_not_hold_is_an_input_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(resolve_encoder_spec(str(tiny_model)), str(tiny_model))

    def full(texts: list[str], role: str, length: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(encoder, "_forward", full)
    with pytest.raises(InputError, match=r"memory does not hold 1 texts of 16 tokens on cpu.*Lower max_length"):
        all_vectors(encoder, ["old mill"] * 5)
    assert encoder.max_batch_tokens == 16


def test_a_model_that_counts_no_tokens_is_given_fewer_texts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    words = StaticEmbedding(Tokenizer.from_file(str(tiny_model / "tokenizer.json")), embedding_dim=4)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "static"))
    encoder = Encoder(resolve_encoder_spec(str(tmp_path / "static")), str(tmp_path / "static"))
    whole = all_vectors(encoder, [f"old mill {i}" for i in range(40)])
    forward = encoder._forward

    def full(texts: list[str], role: str, length: int) -> np.ndarray:
        if len(texts) > 8:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return forward(texts, role, length)

    monkeypatch.setattr(encoder, "_forward", full)
    assert np.array_equal(all_vectors(encoder, [f"old mill {i}" for i in range(40)]), whole)
    assert encoder.max_batch_tokens == 8  # half of 40, of which a multiple of 8 is taken; half of 16


def test_an_error_that_is_not_of_memory_is_not_taken_for_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(resolve_encoder_spec(str(tiny_model)), str(tiny_model))

    def broken(texts: list[str], role: str, length: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(encoder, "_forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        all_vectors(encoder, ["old mill"] * 5)
