"""Loading, saving and scoring with a tiny random BERT."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.device import should_use_bfloat16
from stages.core.errors import InputError
from stages.reranking.cross_encoder import (
    _iter_fixed_shapes,
    _tokenise,
    compute_logits,
    has_head,
    load_reranker,
    save_reranker,
    score_pairs,
)

Edit = Callable[[dict[str, object]], None]
# documents of 1 to 64 tokens: several lengths of the fixed shapes, and many pairs of exactly 32 and 64 tokens
PAIRS = [(f"q{i % 7}", " ".join("abcdefgh"[(i * j) % 8] for j in range(i % 64 + 1))) for i in range(300)]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder folder, with a head."""
    folder = tmp_path_factory.mktemp("cross") / "reranker"
    save_reranker(load_reranker(tiny_model, "cpu", max_length=64, seed=3), folder)
    return folder


def changed(source: Path, folder: Path, edit: Edit) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_encoder_has_no_head_and_a_cross_encoder_has(tiny_model: Path, trained: Path) -> None:
    assert not has_head(tiny_model)
    assert has_head(trained)


def test_a_fresh_head_follows_the_seed(tiny_model: Path) -> None:
    heads = [load_reranker(tiny_model, "cpu", seed=seed).model.classifier.weight.tolist() for seed in (1, 1, 2)]
    assert heads[0] == heads[1]
    assert heads[0] != heads[2]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config.update(id2label={"0": "a", "1": "b", "2": "c"}), "classifier of 3 labels"),
        (lambda config: config.update(architectures=["BertForCausalLM"]), "generates text"),
        (lambda config: config.update(model_type="no-such-thing"), "can't be read: .*no-such-thing"),
    ],
)
def test_an_invalid_base_model_is_an_error(trained: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_reranker(changed(trained, tmp_path / "odd", edit), "cpu")


def test_truncated_weights_are_an_error(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(trained, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut can't be loaded"):
        load_reranker(folder, "cpu")


def test_max_length_and_dropout_are_applied(tiny_model: Path) -> None:
    model = load_reranker(tiny_model, "cpu", max_length=20, dropout=0.25)
    assert max(len(ids) for ids in _tokenise(model, PAIRS)["input_ids"]) == 20
    assert model.model.config.hidden_dropout_prob == model.model.config.attention_probs_dropout_prob == 0.25
    assert load_reranker(tiny_model, "cpu", max_length=4096).max_seq_length == 128
    assert load_reranker(tiny_model, "cpu").model.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_does_not_depend_on_the_other_pairs(trained: Path, dtype: str) -> None:
    model = load_reranker(trained, "cpu")
    scores = score_pairs(model, PAIRS, dtype)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(len(PAIRS))
    assert np.array_equal(score_pairs(model, [PAIRS[i] for i in order], dtype), scores[order])  # type: ignore[arg-type]
    for some in (PAIRS[:1], PAIRS[30:31], PAIRS[5:30]):
        start = PAIRS.index(some[0])
        assert np.array_equal(score_pairs(model, some, dtype), scores[start : start + len(some)])  # type: ignore[arg-type]
    assert scores.dtype == np.float32


def test_scores_are_the_logits_of_sentence_transformers(trained: Path) -> None:
    import torch

    model = load_reranker(trained, "cpu")
    expected = model.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert np.abs(score_pairs(model, PAIRS, "float32") - expected).max() < 1e-6
    assert np.abs(score_pairs(model, PAIRS, "bfloat16") - expected).max() < 0.02


def test_logits_for_training_are_the_same_and_carry_a_gradient(trained: Path) -> None:
    model = load_reranker(trained, "cpu")
    found = compute_logits(model, PAIRS, "float32")
    assert np.abs(found.detach().numpy() - score_pairs(model, PAIRS, "float32")).max() < 1e-6
    found.sum().backward()
    assert model.model.classifier.bias.grad.item() == len(PAIRS)


def test_the_head_keeps_float32_under_bfloat16(trained: Path) -> None:
    scores = score_pairs(load_reranker(trained, "cpu"), PAIRS, "bfloat16")
    # a bfloat16 number is a float32 one whose lower 16 bits are 0
    assert (scores.view(np.uint32) & 0xFFFF != 0).mean() > 0.9


def test_scoring_says_how_far_it_is_and_leaves_the_mode_as_it_was(trained: Path) -> None:
    model = load_reranker(trained, "cpu").train()
    counts: list[int] = []
    score_pairs(model, PAIRS, "float32", counts.append)
    assert model.training
    assert counts == sorted(counts)
    assert counts[-1] == len(PAIRS)
    assert score_pairs(model, []).shape == (0,)


def test_a_saved_folder_loads_in_both_libraries_and_holds_no_path(trained: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ours = load_reranker(trained, "cpu")
    pair = ("q1", "a b c")
    logit = score_pairs(ours, [pair], "float32")[0]
    features = AutoTokenizer.from_pretrained(trained)(*pair, return_tensors="pt")
    with torch.inference_mode():
        plain = AutoModelForSequenceClassification.from_pretrained(trained)(**features).logits
    assert plain.shape == (1, 1)
    assert plain.item() == pytest.approx(logit, abs=1e-6)
    predicted = CrossEncoder(str(trained), device="cpu").predict([pair])[0]
    assert predicted == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert not (trained / "README.md").exists()
    texts = [path.read_text() for path in trained.iterdir() if path.suffix == ".json"]
    assert not any(str(part) in text for text in texts for part in ("/tmp", trained.parent.name))


def test_saving_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    save_reranker(load_reranker(trained, "cpu"), tmp_path / "again")
    names = {path.name for path in trained.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in sorted(names):
        assert (trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@given(st.lists(st.integers(1, 130), max_size=90))
def test_fixed_shapes_hold_every_row_once_with_padding_somewhere(lengths: list[int]) -> None:
    texts = [[0] * length for length in lengths]
    rows: list[int] = []
    heights: dict[int, int] = {}
    for part, length, height in _iter_fixed_shapes(texts, 1024):
        assert heights.setdefault(length, height) == height
        assert height % 8 == 0
        assert length % 32 == 0
        assert 0 < len(part) <= height
        assert all(length - 32 < lengths[row] <= length for row in part)
        assert sum(lengths[row] for row in part) < length * height
        rows += part
    assert sorted(rows) == list(range(len(lengths)))


def test_a_missing_gpu_is_an_error(trained: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="device = 'cuda:0'"):
        load_reranker(trained, "cuda:0")


def test_the_dtype_setting_is_used() -> None:
    assert should_use_bfloat16("cpu", "bfloat16")
    assert not should_use_bfloat16("cpu", "float32")
