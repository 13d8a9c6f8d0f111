"""Whether an encoder fits a table: what its tokenizer makes of the texts, how it ranks, and the verdict on both."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from stages.core.text import UNSPACED_SCRIPTS, casefold_words

FitVerdict = Literal["ok", "doubtful", "misfit"]
Span = tuple[int, int]

# Measured with the default encoder (English) on 25 tables and with multilingual-e5-small on some of them
# (docs/benchmarks.md, "Does the encoder fit?"). Each limit lies between tables that the encoder ranks well and badly.
MISFIT_UNKNOWN_SHARE, DOUBTFUL_UNKNOWN_SHARE = 0.1, 0.03
"""Of the letters. Latin script: 0. Japanese 0.22, Chinese 0.57 to 0.70, Thai 0.89."""
MISFIT_LETTER_SHARE, DOUBTFUL_LETTER_SHARE = 0.4, 0.2
"""Of the pieces. English up to 0.07, German and French 0.13, Polish and Turkish 0.22 to 0.31. Hindi, Bengali and Korean
0.42 to 0.56, Russian, Ukrainian, Arabic and Persian 0.92 to 0.97."""
MISFIT_PIECES_PER_WORD, DOUBTFUL_PIECES_PER_WORD = 4.5, 2.7
"""Only of scripts with spaces. English 1.1 to 1.5, German 2.2 to 2.5, Polish 3.0. Russian and Ukrainian 5.8 to 6.1."""
MISFIT_LEAD, DOUBTFUL_LEAD, GOOD_LEAD = 0.1, 0.2, 0.5
"""Of the recall over chance, where 1 is all positives found and 0 is chance. English 0.78 to 1, a hard table by an
encoder that fits 0.63, scripts that the encoder can't read 0.13 to 0.34 (Chinese up to 0.64). From `GOOD_LEAD` on, and
if BM25 is not significantly better, the encoder may do with what its tokenizer leaves of the texts."""
MISFIT_MRR_RATIO, DOUBTFUL_MRR_RATIO = 0.5, 0.85
"""MRR@10 of the encoder by that of BM25, if BM25 is significantly better. 0.92 or more where the encoder fits, German,
Polish and Turkish 0.60 to 0.80, Chinese, Japanese, Korean, Persian, Thai and Indian languages 0.27 to 0.46."""
MIN_QUERIES = 30
"""With fewer queries the ranking decides nothing."""
DOUBTFUL_ANSWERS_BEYOND = 0.2
"""Share of the known answers that stand in the part of a document which the encoder does not read."""
MIN_TRUNCATED_SHARE = 0.01
"""Of the documents; fewer are not mentioned."""

_WORD_PATTERN = re.compile(f"[{UNSPACED_SCRIPTS}]|[^\\s{UNSPACED_SCRIPTS}]+")
_UNSPACED_SCRIPT_NAMES = {"Han", "Japanese", "Hangul", "Thai", "Lao", "Myanmar", "Khmer"}
_MIN_KANA_SHARE = 0.1
"""Of the words of a text in Han and kana; with fewer kana it is Chinese."""
_TOKENIZER_BATCH_TEXTS = 64
_MAX_REASONS = 3

_MULTILINGUAL = "intfloat/multilingual-e5-small (100 languages, 118 M parameters, MIT)"
_ALTERNATIVES = {"Han": ("BAAI/bge-small-zh-v1.5 (Chinese, 24 M parameters, MIT)", _MULTILINGUAL)}
_OTHER_ALTERNATIVES = (_MULTILINGUAL, "BAAI/bge-m3 (100 languages, 568 M, MIT)")


@dataclass(frozen=True)
class TextMeasures:
    """What a tokenizer makes of some texts. Without a tokenizer only the first three are known."""

    n_texts: int
    script: str | None
    """The script of most words, such as Latin, Cyrillic, Han or Japanese; None if there are no words."""
    mean_chars: float
    unknown_share: float | None = None
    """Share of the letters and digits that lie in unknown tokens; 0 if the tokenizer has no such token."""
    pieces_per_word: float | None = None
    """A character of a script without spaces counts as a word."""
    letter_share: float | None = None
    """Share of the pieces that hold one letter of a longer word, or only a part of a character; None if the tokenizer
    does not tell where its pieces stand."""
    truncated_share: float | None = None
    """Share of the texts that are longer than the encoder reads."""


@dataclass(frozen=True)
class RankingMeasures:
    """How an encoder ranks the known positives of some queries among some documents, beside BM25 and chance."""

    n_queries: int
    n_documents: int
    hit_at_10: float
    mrr_at_10: float
    recall_depth: int
    recall: float
    """R@recall_depth."""
    chance_recall: float
    bm25_mrr_at_10: float
    bm25_recall: float
    mrr_difference: float
    """The encoder's MRR@10 less that of BM25, with its 95 % interval (None with too few groups)."""
    mrr_difference_low: float | None
    mrr_difference_high: float | None

    @property
    def lead(self) -> float:
        """Of the recall over chance: 1 if all positives are found, 0 at chance."""
        return (self.recall - self.chance_recall) / (1 - self.chance_recall) if self.chance_recall < 1 else 1.0

    @property
    def is_below_bm25(self) -> bool:
        """Whether BM25 is significantly better, by MRR@10."""
        return self.mrr_difference_high is not None and self.mrr_difference_high < 0


@dataclass(frozen=True)
class EncoderFit:
    """The verdict, why, and what it is based on."""

    verdict: FitVerdict
    reasons: tuple[str, ...]
    queries: TextMeasures
    documents: TextMeasures
    max_length: int | None
    """Tokens of a text that the encoder reads; None if it is not known or not limited."""
    n_documents: int
    """Of the whole corpus; `documents` is measured on a sample if it has fewer."""
    n_answers: int = 0
    """Known answers that were looked for in their documents."""
    answers_beyond_share: float | None = None
    """Share of them that begin where the encoder does not read any more."""
    ranking: RankingMeasures | None = None

    def add_ranking(self, ranking: RankingMeasures | None) -> "EncoderFit":
        """The same with these measures, and the verdict on all."""
        verdict, reasons = assess_encoder_fit(self.queries, self.documents, ranking, self.answers_beyond_share)
        return replace(self, verdict=verdict, reasons=reasons, ranking=ranking)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EncoderFit":
        """The inverse of `to_dict`."""
        texts = {role: TextMeasures(**content[role]) for role in ("queries", "documents")}
        ranking = RankingMeasures(**content["ranking"]) if content["ranking"] else None
        return cls(**{**content, **texts, "reasons": tuple(content["reasons"]), "ranking": ranking})

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"reasons": list(self.reasons)}


def assess_encoder_fit(
    queries: TextMeasures,
    documents: TextMeasures,
    ranking: RankingMeasures | None = None,
    answers_beyond_share: float | None = None,
) -> tuple[FitVerdict, tuple[str, ...]]:
    """The verdict and its reasons, the gravest first.

    What the tokenizer shows is not a misfit if the encoder ranks well all the same: some read single letters by design.
    """
    from_texts = list(_assess_texts({"queries": queries, "documents": documents}))
    if answers_beyond_share is not None and answers_beyond_share >= DOUBTFUL_ANSWERS_BEYOND:
        text = f"{answers_beyond_share:.0%} of the known answers stand behind what it reads of their documents"
        from_texts.append(("doubtful", text))
    from_ranking: list[tuple[FitVerdict, str]] = []
    if ranking is not None and ranking.n_queries >= MIN_QUERIES:
        from_ranking = list(_assess_ranking(ranking))
        if ranking.lead >= GOOD_LEAD and not ranking.is_below_bm25:
            from_texts = [("doubtful", text) for _, text in from_texts]
    found = [*from_ranking, *from_texts]
    found.sort(key=lambda one: one[0] != "misfit")  # stable
    return found[0][0] if found else "ok", tuple(text for _, text in found[:_MAX_REASONS])


def _assess_texts(measures: Mapping[str, TextMeasures]) -> Iterator[tuple[FitVerdict, str]]:
    """What the tokenizer makes of the texts of each role; of the roles the worse one is named."""
    role, unknown = _find_worst(measures, lambda one: one.unknown_share)
    if unknown >= DOUBTFUL_UNKNOWN_SHARE:
        text = f"its tokenizer does not know {unknown:.0%} of the letters of the {role} (English: 0%)"
        yield "misfit" if unknown >= MISFIT_UNKNOWN_SHARE else "doubtful", text
    role, letters = _find_worst(measures, lambda one: one.letter_share)
    if letters >= DOUBTFUL_LETTER_SHARE:
        text = f"its tokenizer breaks the {role} into single letters: {letters:.0%} of the pieces (English: up to 6%)"
        yield "misfit" if letters >= MISFIT_LETTER_SHARE else "doubtful", text
    role, pieces = _find_worst(
        measures, lambda one: None if one.script in _UNSPACED_SCRIPT_NAMES else one.pieces_per_word
    )
    if pieces >= DOUBTFUL_PIECES_PER_WORD and letters < DOUBTFUL_LETTER_SHARE:
        text = f"its tokenizer makes {pieces:.1f} pieces of a word of the {role} (English: up to 1.5)"
        yield "misfit" if pieces >= MISFIT_PIECES_PER_WORD else "doubtful", text


def _find_worst(
    measures: Mapping[str, TextMeasures], get_value: Callable[[TextMeasures], float | None]
) -> tuple[str, float]:
    """The role with the greatest value, and the value: 0 where it is not known."""
    values = {role: get_value(one) or 0.0 for role, one in measures.items()}
    role = max(values, key=lambda role: values[role])
    return role, values[role]


def _assess_ranking(ranking: RankingMeasures) -> Iterator[tuple[FitVerdict, str]]:
    if ranking.lead < DOUBTFUL_LEAD:
        text = (
            f"it finds {ranking.recall:.0%} of the positives in its best {ranking.recall_depth} of "
            f"{ranking.n_documents:,} documents, chance {ranking.chance_recall:.0%}"
        )
        yield "misfit" if ranking.lead < MISFIT_LEAD else "doubtful", text
    ratio = ranking.mrr_at_10 / ranking.bm25_mrr_at_10 if ranking.bm25_mrr_at_10 else 1.0
    if ratio < DOUBTFUL_MRR_RATIO and ranking.is_below_bm25:
        text = (
            f"BM25 ranks better: MRR@10 {ranking.bm25_mrr_at_10:.3f}, the encoder's {ranking.mrr_at_10:.3f} "
            f"({ranking.n_queries:,} queries, difference {ranking.mrr_difference:+.3f}, 95 % interval "
            f"{ranking.mrr_difference_low:+.3f} to {ranking.mrr_difference_high:+.3f})"
        )
        yield "misfit" if ratio < MISFIT_MRR_RATIO else "doubtful", text


def describe_encoder_fit(fit: EncoderFit, model: str) -> str | None:
    """The verdict on `model` in one line, with what to use instead; None if it is ok."""
    if fit.verdict == "ok":
        return None
    claim = (
        f"the encoder {model} does not fit these texts"
        if fit.verdict == "misfit"
        else f"it is doubtful that the encoder {model} fits these texts"
    )
    script = fit.documents.script or fit.queries.script or "unknown"
    others = [name for name in _ALTERNATIVES.get(script, _OTHER_ALTERNATIVES) if name.split()[0] != model]
    return (
        f"{claim} (mostly {script}): {'; '.join(fit.reasons)}. Try model = {' or '.join(others)}, or a server by url, "
        "under [encode]; docs/training.md#models lists more"
    )


def describe_truncation(fit: EncoderFit) -> str | None:
    """How many documents are longer than the encoder reads, and what to do; None if hardly any is."""
    share = fit.documents.truncated_share
    if not share or share < MIN_TRUNCATED_SHARE:
        return None
    n_measured = fit.documents.n_texts
    count = f"{round(share * n_measured):,} of {n_measured:,}"
    of = f"{count} documents" if n_measured >= fit.n_documents else f"{share:.0%} of the documents"
    answers = ""
    if fit.answers_beyond_share:
        answers = f", and {fit.answers_beyond_share:.0%} of {fit.n_answers:,} known answers stand there"
    return (
        f"{of} are longer than the encoder reads ({fit.max_length:,} tokens): the rest is cut off{answers}. "
        "chunk_words under [pairs] splits documents into chunks that are read whole"
    )


def measure_texts(texts: Sequence[str], tokenizer: Any = None, max_tokens: int | None = None) -> TextMeasures:
    """Measure `texts`. `tokenizer` is one of transformers.

    A text counts as truncated if it has more than `max_tokens` tokens without special ones.
    """
    words = [_WORD_PATTERN.findall(casefold_words(text)) for text in texts]
    n_words = sum(map(len, words))
    script = _find_main_script(Counter(_get_script(word[0]) for one in words for word in one))
    mean_chars = round(sum(map(len, texts)) / max(len(texts), 1), 1)
    if tokenizer is None or not texts:
        return TextMeasures(len(texts), script, mean_chars)
    total: Counter[str] = Counter()
    n_truncated = 0
    for text, (ids, spans) in zip(texts, tokenize(tokenizer, texts), strict=True):
        total.update(count_pieces(text, ids, spans, tokenizer.unk_token_id))
        n_truncated += max_tokens is not None and len(ids) > max_tokens
    return TextMeasures(
        len(texts),
        script,
        mean_chars,
        round(total["unknown_chars"] / max(total["chars"], 1), 4),
        round(total["pieces"] / max(n_words, 1), 3),
        round(total["letters"] / max(total["pieces"], 1), 4) if tokenizer.is_fast else None,
        round(n_truncated / len(texts), 4) if max_tokens is not None else None,
    )


def measure_answers_beyond(
    answers: Sequence[tuple[str, str]], tokenizer: Any, max_tokens: int
) -> tuple[int, float | None]:
    """Of (answer, document) how many have the answer in the document; the share of them where it begins beyond the
    first `max_tokens` tokens. None if there are none."""
    found = [(document, document.find(answer)) for answer, document in answers]
    found = [(document, place) for document, place in found if place >= 0]
    if not found:
        return 0, None
    n_beyond = 0
    for (_, place), (_, spans) in zip(found, tokenize(tokenizer, [document for document, _ in found]), strict=True):
        n_beyond += spans is not None and len(spans) > max_tokens and place >= spans[max_tokens][0]
    return len(found), round(n_beyond / len(found), 4)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], list[Span] | None]]:
    """Of each text the ids of its tokens, without special ones, and where they stand in it if the tokenizer tells."""
    for start in range(0, len(texts), _TOKENIZER_BATCH_TEXTS):
        batch = list(texts[start : start + _TOKENIZER_BATCH_TEXTS])
        found = tokenizer(
            batch,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=bool(tokenizer.is_fast),
            verbose=False,
        )
        yield from zip(found["input_ids"], found.get("offset_mapping") or [None] * len(batch), strict=True)


def count_pieces(text: str, ids: Sequence[int], spans: Sequence[Span] | None, unknown_id: int | None) -> dict[str, int]:
    """Of a text: "pieces" that hold letters or digits, "letters" (those that hold one letter of a longer word, or only
    a part of a character), "chars" (letters and digits) and "unknown_chars".

    Without `spans` pieces are counted for characters, and no "letters". Han characters are words, so they count for
    no letters.
    """
    if spans is None:
        return {"pieces": len(ids), "letters": 0, "chars": len(ids), "unknown_chars": sum(i == unknown_id for i in ids)}
    pieces = letters = chars = unknown_chars = 0
    previous: Span = (-1, -1)
    for one, (start, end) in zip(ids, spans, strict=True):
        while start < end and text[start].isspace():
            start += 1  # byte-level tokenizers put the space before a word into its first piece
        n_chars = sum(map(str.isalnum, text[start:end]))
        if not n_chars:
            continue
        pieces += 1
        is_fragment = (start, end) == previous
        chars += 0 if is_fragment else n_chars
        if one == unknown_id:
            unknown_chars += n_chars
        elif is_fragment:
            letters += 1
        elif end - start == 1 and text[start].isalpha() and not _is_unspaced(text[start]):
            letters += text[max(start - 1, 0) : start].isalpha() or text[end : end + 1].isalpha()
        previous = start, end
    return {"pieces": pieces, "letters": letters, "chars": chars, "unknown_chars": unknown_chars}


@cache
def _is_unspaced(character: str) -> bool:
    return _WORD_PATTERN.match(character + "a").end() == 1  # type: ignore[union-attr]


@cache
def _get_script(character: str) -> str | None:
    """The script of a letter by its Unicode name; None for anything else."""
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0].capitalize()
    return {"Cjk": "Han", "Hiragana": "Kana", "Katakana": "Kana"}.get(name, name or None)


def _find_main_script(scripts: Mapping[str | None, int]) -> str | None:
    counts = Counter({script: count for script, count in scripts.items() if script})
    if counts["Kana"] > _MIN_KANA_SHARE * (counts["Kana"] + counts["Han"]):
        counts["Japanese"] = counts.pop("Kana") + counts.pop("Han", 0)
    return max(counts, key=lambda script: (counts[script], script)) if counts.total() else None
