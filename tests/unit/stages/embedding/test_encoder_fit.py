"""Measures of texts by tokenizers made by hand, and the verdicts on measures."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.embedding.encoder_fit import (
    EncoderFit,
    RankingMeasures,
    TextMeasures,
    assess_encoder_fit,
    count_pieces,
    describe_encoder_fit,
    describe_truncation,
    measure_answers_beyond,
    measure_texts,
)

PIECES = ["[UNK]", "red", "gr", "##een", "apple", "!", "д", "##о", "##м", "我", "가"]


@pytest.fixture(scope="module")
def word_piece() -> Any:
    """A WordPiece tokenizer that knows a few words, and letters of others."""
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A byte-level BPE tokenizer without an unknown token, which knows the word "red"."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d"), ("Ġ", "red")]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_words_and_pieces_of_words_that_are_known(word_piece: Any) -> None:
    # red, gr ##een, apple; the "!" is no word
    assert measure_texts(["Red green apple!"], word_piece, 4) == TextMeasures(
        1, "Latin", 16.0, unknown_share=0.0, pieces_per_word=1.333, letter_share=0.0, truncated_share=1.0
    )
    assert measure_texts(["Red green apple!"], word_piece, 5).truncated_share == 0.0
    assert measure_texts(["red", "red red"], word_piece, 1).truncated_share == 0.5


def test_unknown_tokens_count_by_their_letters(word_piece: Any) -> None:
    # 3 letters are known, 9 are in two unknown tokens
    assert measure_texts(["red blue violet"], word_piece).unknown_share == round(10 / 13, 4)
    # one Han character is known, three are not: each is a word
    found = measure_texts(["我们你好"], word_piece)
    assert (found.script, found.unknown_share, found.letter_share, found.pieces_per_word) == ("Han", 0.75, 0.0, 1.0)


def test_words_that_are_broken_into_single_letters(word_piece: Any) -> None:
    found = measure_texts(["дом red"], word_piece)  # д ##о ##м, red
    assert (found.letter_share, found.pieces_per_word, found.unknown_share) == (0.75, 2.0, 0.0)
    assert found.truncated_share is None
    assert measure_texts(["д red"], word_piece).letter_share == 0.0  # a word of one letter


def test_a_byte_level_tokenizer_knows_everything_and_breaks_it(byte_level: Any) -> None:
    found = measure_texts(["red red"], byte_level)
    assert (found.unknown_share, found.letter_share, found.pieces_per_word) == (0.0, 0.0, 1.0)
    found = measure_texts(["дом"], byte_level)  # two bytes a letter
    assert (found.unknown_share, found.letter_share, found.pieces_per_word) == (0.0, 1.0, 6.0)
    found = measure_texts(["我"], byte_level)  # three bytes; the first stands for the character
    assert (found.unknown_share, found.letter_share, found.pieces_per_word) == (0.0, 0.6667, 3.0)


def test_without_a_tokenizer_there_are_scripts_and_lengths() -> None:
    assert measure_texts(["дом и red", "дом"]) == TextMeasures(2, "Cyrillic", 6.0)
    assert measure_texts([]) == TextMeasures(0, None, 0.0)
    assert measure_texts(["12 !"]).script is None


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The answer is 42", "Latin"),
        ("Ответ на вопрос", "Cyrillic"),
        ("الجواب على السؤال", "Arabic"),
        ("प्रश्न का उत्तर", "Devanagari"),
        ("回答问题 API", "Han"),
        ("質問に答える", "Japanese"),
        ("질문에 답하다", "Hangul"),
        ("คำตอบ", "Thai"),
        ("ＡＢＣ Ｄ", "Latin"),
    ],
)
def test_main_script(text: str, script: str) -> None:
    assert measure_texts([text]).script == script


def test_answers_beyond_the_cut(word_piece: Any) -> None:
    documents = [("red", "red apple green"), ("green", "red apple green"), ("apple", "green"), ("apple", "red apple")]
    # two tokens are read: the second answer is beyond, the third is not in its document
    assert measure_answers_beyond(documents, word_piece, 2) == (3, 0.3333)
    assert measure_answers_beyond(documents[2:3], word_piece, 2) == (0, None)


ENGLISH = TextMeasures(100, "Latin", 50.0, 0.0, 1.2, 0.03, 0.0)
CHINESE = TextMeasures(100, "Han", 50.0, 0.63, 1.0, 0.0, 0.0)
RUSSIAN = TextMeasures(100, "Cyrillic", 50.0, 0.0, 5.5, 0.93, 0.0)
POLISH = TextMeasures(100, "Latin", 50.0, 0.0, 3.0, 0.22, 0.0)
GOOD = RankingMeasures(100, 1000, 0.9, 0.8, 100, 0.95, 0.1, 0.75, 0.9, 0.05, 0.01, 0.09)


@pytest.mark.parametrize(
    ("queries", "documents", "verdict"),
    [
        (ENGLISH, ENGLISH, "ok"),
        (CHINESE, CHINESE, "misfit"),
        (ENGLISH, CHINESE, "misfit"),
        (RUSSIAN, RUSSIAN, "misfit"),
        (POLISH, POLISH, "doubtful"),
        (replace(RUSSIAN, letter_share=None), ENGLISH, "misfit"),  # by its pieces a word
        (replace(CHINESE, unknown_share=0.0, pieces_per_word=9.0), ENGLISH, "ok"),  # words are characters there
        (TextMeasures(100, "Han", 50.0), TextMeasures(100, "Han", 50.0), "ok"),  # behind a URL
    ],
)
def test_the_verdict_on_texts(queries: TextMeasures, documents: TextMeasures, verdict: str) -> None:
    assert assess_encoder_fit(queries, documents)[0] == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "ok"),
        ({"recall": 0.15}, "misfit"),  # a lead of 0.06 over chance
        ({"recall": 0.25}, "doubtful"),
        ({"recall": 0.15, "n_queries": 29}, "ok"),
        ({"mrr_at_10": 0.35, "mrr_difference": -0.4, "mrr_difference_high": -0.2}, "misfit"),
        ({"mrr_at_10": 0.35, "mrr_difference": -0.4, "mrr_difference_high": 0.1}, "ok"),  # not significant
        ({"mrr_at_10": 0.5, "mrr_difference": -0.25, "mrr_difference_high": -0.2}, "doubtful"),
        ({"mrr_at_10": 0.65, "mrr_difference": -0.1, "mrr_difference_high": -0.05}, "ok"),
        ({"recall": 1.0, "chance_recall": 1.0}, "ok"),
    ],
)
def test_the_verdict_on_a_ranking(changed: dict[str, Any], verdict: str) -> None:
    assert assess_encoder_fit(ENGLISH, ENGLISH, replace(GOOD, **changed))[0] == verdict


def test_what_ranks_well_is_no_misfit() -> None:
    assert assess_encoder_fit(RUSSIAN, RUSSIAN, GOOD)[0] == "doubtful"
    assert assess_encoder_fit(RUSSIAN, RUSSIAN, replace(GOOD, recall=0.4))[0] == "misfit"
    assert assess_encoder_fit(RUSSIAN, RUSSIAN, replace(GOOD, mrr_difference_high=-0.01))[0] == "misfit"


def test_reasons_name_the_worse_texts_and_the_gravest_first() -> None:
    ranking = replace(GOOD, mrr_at_10=0.3, mrr_difference=-0.45, mrr_difference_low=-0.5, mrr_difference_high=-0.4)
    verdict, reasons = assess_encoder_fit(ENGLISH, replace(CHINESE, letter_share=0.25), ranking)
    assert verdict == "misfit"
    assert reasons == (
        "BM25 ranks better: MRR@10 0.750, the encoder's 0.300 (100 queries, difference -0.450, 95 % interval -0.500 to "
        "-0.400)",
        "its tokenizer does not know 63% of the letters of the documents (English: 0%)",
        "its tokenizer breaks the documents into single letters: 25% of the pieces (English: up to 6%)",
    )
    assert assess_encoder_fit(ENGLISH, ENGLISH, None, 0.3) == (
        "doubtful",
        ("30% of the known answers stand behind what it reads of their documents",),
    )


def test_what_is_said() -> None:
    fit = EncoderFit("ok", (), ENGLISH, ENGLISH, 256, 100)
    assert describe_encoder_fit(fit, "m") is None
    assert describe_truncation(fit) is None
    misfit = replace(fit, documents=CHINESE).add_ranking(None)
    line = describe_encoder_fit(misfit, "m")
    assert line
    assert line.startswith("the encoder m does not fit these texts (mostly Han): its tokenizer does not know 63%")
    assert "BAAI/bge-small-zh-v1.5" in line
    line = describe_encoder_fit(replace(fit, documents=RUSSIAN).add_ranking(None), "intfloat/multilingual-e5-small")
    assert line
    assert "Try model = BAAI/bge-m3 (100 languages, 568 M, MIT), or a server by url" in line
    cut = replace(fit, documents=replace(ENGLISH, truncated_share=0.12))
    assert str(describe_truncation(cut)).startswith(
        "12 of 100 documents are longer than the encoder reads (256 tokens): the rest is cut off. chunk_words under "
    )
    sampled = replace(cut, n_documents=5000, n_answers=40, answers_beyond_share=0.05)
    assert str(describe_truncation(sampled)).startswith("12% of the documents are longer")
    assert "cut off, and 5% of 40 known answers stand there." in str(describe_truncation(sampled))


def test_a_fit_as_json_and_back() -> None:
    fit = EncoderFit("doubtful", ("why",), ENGLISH, POLISH, 256, 100, 3, 0.5, GOOD)
    assert EncoderFit.from_dict(fit.to_dict()) == fit
    assert fit.to_dict()["ranking"]["mrr_at_10"] == 0.8


def test_a_tokenizer_that_does_not_tell_where_its_pieces_stand() -> None:
    counts = {"pieces": 3, "letters": 0, "chars": 3, "unknown_chars": 2}
    assert count_pieces("red apple!", [7, 0, 0], None, 0) == counts
    assert count_pieces("red apple!", [7, 0, 0], None, None)["unknown_chars"] == 0
