"""Near-duplicate documents: the same but for punctuation, markup, letter case, a greeting or a footer.

No model is needed. Two documents are near duplicates if
- their words are the same,
- their words are the same without the greeting before and the farewell after them, or
- one holds all words of the other in a row, and these are most of it.
A difference in the middle (another product, another number, a "not") makes two documents, and so does another
heading: what a search for near duplicates by shingles (Broder 1997) or by vectors takes for one would take hard
negatives away.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.arrays import Ints
from stages.core.clause_hashes import ClauseHashes, concat_clauses, fold_punctuation, hash_clauses
from stages.pairs.split import find_components

MIN_CONTAINED_SHARE = 0.5
"""The share of a document's characters that a document within it must have to be the same document."""
MIN_CHARACTERS = 16
"""Shorter texts are phrases that many documents hold ("see above")."""
MIN_CORE_SHARE = 0.3
"""The share of a document that must be in others, for its greeting and farewell to be looked for."""
MIN_FOOTER_REPEATS = 3
"""A last clause that so many documents hold is a footer."""
_N_ANCHORS = 3
"""Clauses by which a document is found in others: its rarest ones. One clause would do but for changed punctuation."""
_MAX_COMPARISONS = 20
"""A document is compared with so many of those that share a clause with it, the shortest first."""
_MAX_GREETING_CHARACTERS, _MAX_FAREWELL_CHARACTERS = 80, 160
"""Of a clause of a greeting, and of all that stands from a farewell on."""

_CLAUSE_END = r"[.,;:!?\n|]+"
_NOT_WORD = r"[^\p{L}\p{N}\p{M}]+"
_GREETINGS = (
    "hi|hello|hey|dear|greetings|welcome|good morning|good afternoon|good evening|good day|thanks|thank you",
    "many thanks",
    "sorry|we are sorry|we re sorry|i am sorry",
    "hallo|liebe|lieber|guten tag|guten morgen|guten abend|sehr geehrte|danke|vielen dank",
    "bonjour|cher|chère|merci|hola|estimado|estimada|buenos|buenas|gracias|ciao|gentile|grazie",
    "olá|prezado|prezada|obrigado|obrigada|здравствуйте|уважаемый|уважаемая|добрый день|спасибо",
)
_FAREWELLS = (
    "regards|wishes|best regards|best wishes|kind regards|warm regards|many regards|sincerely|yours|cheers|thanks",
    "thank you|have a|hope this helps|i hope this helps|we hope this helps|let us know|let me know|please let us",
    "please let me|feel free|please feel free|don t hesitate|do not hesitate|please don t hesitate",
    "please do not hesitate",
    "if you have any|if you have more|if you have further|if you have other",
    "mit freundlichen|freundliche|viele grüße|beste grüße|liebe grüße|ihr team|cordialement|bien à vous",
    "saludos|atentamente|un saludo|cordiali saluti|atenciosamente|с уважением",
)
"""Words with which a clause of a greeting or a farewell begins, of languages with spaces between words."""
_UNSPACED_GREETINGS = "您好|你好|尊敬的|亲爱的|感谢您|谢谢您|こんにちは|お世話|ありがとう|안녕하세요|감사합니다"
_UNSPACED_FAREWELLS = "此致|祝您|祝好|谢谢|感谢|如有|よろしく|敬具|감사합니다"
_GREETING = f"^(?:(?:{'|'.join(_GREETINGS)})(?: |$)|{_UNSPACED_GREETINGS})"
_FAREWELL = f"^(?:(?:{'|'.join(_FAREWELLS)})(?: |$)|{_UNSPACED_FAREWELLS})"


def find_near_duplicates(read_batches: Callable[[], Iterable[pl.DataFrame]]) -> pl.DataFrame:
    """The documents that have a near duplicate: doc_id and `cluster`, the smallest doc_id of its cluster.

    `read_batches` gives doc_id and text, as models read it, in batches, and the same ones if it is called again.
    Sorted by doc_id; empty if no two documents are near duplicates. In memory are the hashes of all clauses, and the
    texts of one batch.
    """
    doc_ids, hashes = [pl.Series(dtype=pl.String)], [hash_clauses(pl.Series(dtype=pl.String))]
    for batch in read_batches():
        doc_ids.append(batch["doc_id"])
        hashes.append(hash_clauses(batch["text"]))
    ids, clauses = pl.concat(doc_ids), concat_clauses(hashes)
    shared = _select_shared(clauses)
    words = pl.Series(clauses.document_hash)
    edges = np.concatenate(
        [
            _pair_equal(words.zip_with(pl.Series(clauses.document_size > 0), pl.Series([None], dtype=pl.UInt64))),
            _pair_equal(*_hash_cores(read_batches, shared, words)),
            _pair_without_footer(shared),
            _pair_contained(shared),
        ]
    )
    component = find_components(len(ids), [(edges.ravel(), np.repeat(np.arange(len(edges)), 2))])
    clusters = pl.DataFrame({"doc_id": ids, "component": component}).filter(pl.len().over("component") > 1)
    return clusters.select("doc_id", cluster=pl.col("doc_id").min().over("component")).sort("doc_id")


def _select_shared(clauses: ClauseHashes) -> pl.DataFrame:
    """The clauses that several documents hold, with the number `n_documents` of these, and with the number of clauses
    and the size of their own document."""
    ordered = np.sort(clauses.hash)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    is_repeated = np.isin(clauses.hash, repeated)
    document = clauses.document[is_repeated]
    n_clauses = np.bincount(clauses.document, minlength=len(clauses.document_size))
    frame = pl.DataFrame(
        {
            "document": document,
            "position": clauses.position[is_repeated],
            "n_clauses": n_clauses[document],
            "size": clauses.size[is_repeated],
            "total": clauses.document_size[document],
            "hash": clauses.hash[is_repeated],
        }
    )
    return frame.with_columns(n_documents=pl.col("document").n_unique().over("hash")).filter(pl.col("n_documents") > 1)


def _hash_cores(
    read_batches: Callable[[], Iterable[pl.DataFrame]], shared: pl.DataFrame, words: pl.Series
) -> tuple[pl.Series, pl.Series]:
    """Of the documents that share clauses: the hash of what each is without its greeting and its farewell, or of all of
    it if it has none or little is left; and which documents these are."""
    share = pl.col("size").sum().over("document") / pl.col("total")
    documents = shared.filter(share >= MIN_CORE_SHARE)["document"].unique().sort()
    keys, first = words.gather(documents), 0
    for batch in read_batches() if len(documents) else ():
        in_batch = documents.is_between(first, first + len(batch) - 1)
        cores = _strip_greetings(batch["text"].gather(documents.filter(in_batch) - first))
        core_hashes = hash_clauses(cores["core"])
        is_enough = core_hashes.document_size >= MIN_CHARACTERS
        places = in_batch.arg_true().gather(cores["text"].filter(is_enough))
        keys = keys.scatter(places, core_hashes.document_hash[is_enough])
        first += len(batch)
    return keys, documents


def _strip_greetings(texts: pl.Series) -> pl.DataFrame:
    """Of the texts with a greeting or a farewell: `text`, the number of the text, and `core`, what is left of it."""
    clauses = (
        pl.DataFrame({"text": np.arange(len(texts)), "clause": fold_punctuation(texts)})
        .lazy()
        .with_columns(pl.col("clause").str.to_lowercase().str.replace_all(_CLAUSE_END, "\x1f").str.split("\x1f"))
        .explode("clause")
        .with_columns(pl.col("clause").str.replace_all(_NOT_WORD, " ").str.strip_chars())
        .filter(pl.col("clause") != "")
        .with_columns(size=pl.col("clause").str.len_chars().cast(pl.Int64))
        .with_columns(
            is_head=(_starts(_GREETING)).cum_min().over("text"), rest=pl.col("size").cum_sum(reverse=True).over("text")
        )
        .with_columns(
            is_foot=(_starts(_FAREWELL) & ~pl.col("is_head") & (pl.col("rest") <= _MAX_FAREWELL_CHARACTERS))
            .cum_max()
            .over("text")
        )
    )
    edge = pl.col("is_head") | pl.col("is_foot")
    cores = clauses.filter(edge.any().over("text") & ~edge).group_by("text").agg(core=pl.col("clause").str.join(" "))
    return cores.sort("text").collect()


def _starts(pattern: str) -> pl.Expr:
    return pl.col("clause").str.contains(pattern) & (pl.col("size") <= _MAX_GREETING_CHARACTERS)


def _pair_equal(keys: pl.Series, documents: pl.Series | None = None) -> Ints:
    """Pairs (first, other) of the documents of equal keys that are not null: [n, 2]."""
    frame = pl.DataFrame({"key": keys, "document": np.arange(len(keys)) if documents is None else documents})
    paired = frame.drop_nulls().select(pl.col("document").min().over("key").alias("first"), "document")
    return _to_pairs(paired.filter(pl.col("first") != pl.col("document")).rows())


def _pair_without_footer(shared: pl.DataFrame) -> Ints:
    """Pairs of documents that are the same without the clauses at their ends that many documents hold: [n, 2]."""
    whole = shared.filter(pl.len().over("document") == pl.col("n_clauses")).sort("document", "position")
    is_footer = (pl.col("n_documents") >= MIN_FOOTER_REPEATS).cum_min(reverse=True).over("document")
    cores = (
        whole.filter(~is_footer)
        .group_by("document", maintain_order=True)
        .agg(pl.col("hash"), pl.col("size").sum())
        .filter(pl.col("size") >= MIN_CHARACTERS)
    )
    return _pair_equal(cores["hash"].hash(0) if len(cores) else pl.Series([], dtype=pl.UInt64), cores["document"])


def _pair_contained(shared: pl.DataFrame) -> Ints:
    """Pairs of documents of which one holds the other's clauses in a row: [n, 2]."""
    mostly = shared.filter(pl.col("size").sum().over("document") >= MIN_CONTAINED_SHARE * pl.col("total"))
    anchors = (
        mostly.unique(["document", "hash"])
        .sort("document", "n_documents", "hash")
        .filter(pl.int_range(pl.len()).over("document") < _N_ANCHORS)
        .filter(pl.len().over("hash") > 1)
        .sort("hash", "total", "document")
        .group_by("hash", maintain_order=True)
        .agg("document")["document"]
    )
    used = mostly.join(anchors.explode().unique().alias("document").to_frame(), on="document", how="semi")
    sequences = {
        document: _Sequence(dict(zip(positions, hashes, strict=True)), n_clauses, total)
        for document, positions, hashes, n_clauses, total in used.group_by("document")
        .agg("position", "hash", pl.col("n_clauses").first(), pl.col("total").first())
        .iter_rows()
    }
    return _to_pairs([pair for group in anchors for pair in _compare_group(group.to_list(), sequences)])


class _Sequence(NamedTuple):
    """The clauses of a document that others hold: position -> hash; and what all of its clauses count."""

    hashes: dict[int, int]
    n_clauses: int
    n_characters: int


def _compare_group(documents: Sequence[int], sequences: Mapping[int, _Sequence]) -> Iterator[tuple[int, int]]:
    shorter: list[int] = []
    for document in documents:
        held = next((one for one in shorter if _contains(sequences[document], sequences[one])), None)
        if held is not None:
            yield held, document
        elif len(shorter) < _MAX_COMPARISONS:
            shorter.append(document)


def _contains(text: _Sequence, part: _Sequence) -> bool:
    """Whether a text holds all clauses of another in a row, and these are most of it."""
    if len(part.hashes) < part.n_clauses or part.n_characters < max(
        MIN_CHARACTERS, MIN_CONTAINED_SHARE * text.n_characters
    ):
        return False
    return any(
        all(text.hashes.get(start + place) == clause for place, clause in part.hashes.items()) for start in text.hashes
    )


def _to_pairs(rows: Sequence[tuple[int, ...]]) -> Ints:
    return np.array(rows, dtype=np.int64).reshape(-1, 2)
