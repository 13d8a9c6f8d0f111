"""Bench of negatives: hide half of each question's positives, mine under each rule, count how many come back.

What was hidden is a false negative whose label we know. *Leak* is the share of hidden positives among the negatives
mined; *hardness* the mean retriever score of the others; *fill* the share of the wanted negatives that was found. Rules
differ in hardness, and an easier negative is less often false; so the figure that counts is the leak of each rule
against the learned mask's at the same hardness (the price of `stages.negatives.budget` is set so that they agree).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from stages import contracts
from stages.draw import draw
from stages.errors import InputError
from stages.negatives import budget, learned, rules
from stages.negatives.budget import Bools, Floats, Lists
from stages.negatives.rules import RuleName


@dataclass(frozen=True)
class Fixed:
    """A fixed rule as one of the systems in use states it."""

    rule: RuleName
    value: float | None = None
    window: tuple[int, int] = (0, 0)
    source: str = ""


FIXED: dict[str, Fixed] = {
    "naive": Fixed("none", source="top-k"),
    "perc 0.95": Fixed("perc", 0.95, source="NV-Retriever TopK-PercPos, NeMo; sentence-transformers relative_margin"),
    "perc 0.9": Fixed("perc", 0.9, source="sentence-transformers relative_margin 0.1"),
    "perc_max 0.95": Fixed("perc_max", 0.95, source="on the best positive"),
    "perc_max 0.9": Fixed("perc_max", 0.9, source="on the best positive"),
    "margin 0.05": Fixed("margin", 0.05, source="NV-Retriever TopK-MarginPos, NeMo; s-t absolute_margin"),
    "margin 0.1": Fixed("margin", 0.1, source="sentence-transformers absolute_margin 0.1"),
    "abs 0.7": Fixed("abs", 0.7, source="NV-Retriever TopK-Abs; sentence-transformers max_score"),
    "infonce 0.1": Fixed("infonce", 0.1, source="SWIFT INFONCE_MASK_FAKE_NEGATIVE"),
    "window 10-210": Fixed("window", window=(10, 210), source="FlagEmbedding; sentence-transformers range_min 10"),
}  # fmt: skip
BUDGETS = (0.01, 0.02, 0.05)
NEAR = 0.98


@dataclass(frozen=True)
class Collection:
    """A judged collection with half of its positives hidden."""

    name: str
    digest: str
    """Of its judgements; tells a set that the prior was fitted on."""
    queries: pl.DataFrame
    corpus: pl.DataFrame
    known: pl.DataFrame
    """query_id, doc_id, relevance: the positives that are left."""
    hidden: pl.DataFrame
    """query_id, doc_id."""
    wrong: pl.DataFrame
    """query_id, doc_id that people judged not relevant."""


@dataclass(frozen=True)
class Judgements:
    """What people judged of a collection, nothing hidden."""

    digest: str
    queries: pl.DataFrame
    """query_id, query."""
    corpus: pl.DataFrame
    """doc_id, text, and where the collection has them title and category."""
    positives: pl.DataFrame
    """query_id, doc_id, relevance."""
    wrong: pl.DataFrame
    """query_id, doc_id that people judged not relevant."""


def read_judgements(folder: Path) -> Judgements:
    """A folder with queries, corpus and qrels as Parquet or as BEIR has them.

    Where grades go up to 3, positives begin at 2, as in TREC; a 1 is neither. Raises `InputError` naming what is
    missing.
    """
    queries, corpus, qrels = _beir(folder) if (folder / "corpus.jsonl").is_file() else _parquet(folder)
    if "relevance" not in qrels.columns:
        qrels = qrels.with_columns(relevance=pl.lit(1))
    grades = qrels.select("query_id", "doc_id", pl.col("relevance").cast(pl.Int32))
    grades = grades.join(queries, on="query_id", how="semi").join(corpus, on="doc_id", how="semi")
    pair = ["query_id", "doc_id"]
    grades = grades.sort(*pair, "relevance").unique(pair, keep="last", maintain_order=True)
    least = 2 if (grades["relevance"].max() or 0) >= 3 else 1  # type: ignore[operator]
    lines = "\n".join(f"{query}\t{doc}\t{grade}" for query, doc, grade in grades.iter_rows())
    optional = [name for name in ("title", "category") if name in corpus.columns]
    return Judgements(
        xxhash.xxh3_128_hexdigest(lines.encode()),
        queries.select("query_id", "query").sort("query_id"),
        corpus.select("doc_id", "text", *optional).sort("doc_id"),
        grades.filter(pl.col("relevance") >= least),
        grades.filter(pl.col("relevance") == 0).select(pair),
    )


def read_collection(folder: Path, seed: int, most: int) -> Collection:
    """The judgements in `folder` with half of each question's positives hidden.

    Mined for are the questions with two positives or more, of these at most `most` (drawn by hash). Raises
    `InputError` naming what is missing.
    """
    found = read_judgements(folder)
    positives = learned.hide(found.positives, seed, "bench")
    many = positives.filter("hidden")["query_id"].unique().to_list()
    kept = sorted(many, key=lambda query: (draw(seed, "bench", query), query))[:most]
    asked = pl.col("query_id").is_in(kept)
    split = pl.when(asked).then(pl.lit("train")).otherwise(pl.lit("test"))
    return Collection(
        folder.name,
        found.digest,
        found.queries.with_columns(split=split, group="query_id"),
        found.corpus,
        positives.filter(~pl.col("hidden")).select("query_id", "doc_id", "relevance"),
        positives.filter(pl.col("hidden") & asked).select("query_id", "doc_id"),
        found.wrong.filter(asked),
    )


def _parquet(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    wanted = {"queries": ("query_id", "query"), "corpus": ("doc_id", "text"), "qrels": ("query_id", "doc_id")}
    found = []
    for name, columns in wanted.items():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise InputError(
                f"{path} is not there: a bench folder holds queries, corpus and qrels, or is a BEIR folder"
            )
        found.append(pl.read_parquet(path))
        if missing := [column for column in columns if column not in found[-1].columns]:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(found[-1].columns)}")
    return found[0], found[1], found[2]


def _beir(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    texts = {"_id": pl.String, "title": pl.String, "text": pl.String}
    paths = sorted((folder / "qrels").glob("*.tsv"))
    try:
        corpus = pl.read_ndjson(folder / "corpus.jsonl", schema=texts)
        queries = pl.read_ndjson(folder / "queries.jsonl", schema={"_id": pl.String, "text": pl.String})
        judged = [pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False) for path in paths]
        qrels = pl.concat(judged).select(
            query_id="query-id", doc_id="corpus-id", relevance=pl.col("score").cast(pl.Int32)
        )
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder} is no BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv): {error}") from error
    return queries.rename({"_id": "query_id", "text": "query"}), corpus.rename({"_id": "doc_id"}), qrels


def write_inputs(collection: Collection, folder: Path) -> dict[str, Path]:
    """The collection as the stages read it, with the known positives as its only judgements."""
    frames = {"queries": collection.queries, "corpus": collection.corpus, "qrels": collection.known}
    for name, frame in frames.items():
        contracts.write_table(frame, getattr(contracts, name.upper()), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in frames}


@dataclass(frozen=True)
class Mined:
    """The candidates of the questions mined for, as lists without the known positives, and what is known of them."""

    lists: Lists
    rank: NDArray[np.int32]
    """[q, width], the known positives counted among the ranks."""
    hidden: Bools
    wrong: Bools
    near: Bools
    """Nearly equal to a known positive."""
    lowest: Floats
    best: Floats
    """[q]: scores of the lowest and the best known positive."""


def as_lists(
    rows: pl.DataFrame,
    p: Floats,
    judged: pl.DataFrame,
    k: int,
    hidden: pl.DataFrame | None = None,
    wrong: pl.DataFrame | None = None,
    near: pl.DataFrame | None = None,
) -> Mined:
    """`rows` (query_id, doc_id, rank, score) in the order of lists, with p_false_negative [n], as `Mined`.

    `judged` holds the known positives' scores; `hidden`, `wrong` and `near` (query_id, doc_id) what is known besides.
    """
    query = rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    ids = rows.select(pl.col("query_id").unique(maintain_order=True))
    score = rows["score"].to_numpy()
    lists, at = budget.padded(query, score, p, np.full(len(ids), k))
    pair = ["query_id", "doc_id"]
    marks = []
    for side in (hidden, wrong, near):
        known = rows.select(pair).clear() if side is None else side.select(pair)
        held = rows.join(known.with_columns(held=True), on=pair, how="left", maintain_order="left")["held"]
        marks.append(_table(held.fill_null(False).to_numpy(), lists.open.shape, at))
    anchors = judged.filter(pl.col("relevance") > 0).group_by("query_id")
    ends = ids.join(
        anchors.agg(lowest=pl.col("score").min(), best=pl.col("score").max()),
        on="query_id",
        how="left",
        maintain_order="left",
    )
    return Mined(
        lists,
        _table(rows["rank"].cast(pl.Int32).to_numpy(), lists.open.shape, at),
        marks[0],
        marks[1],
        marks[2],
        ends["lowest"].to_numpy(),
        ends["best"].to_numpy(),
    )


def _table(
    values: NDArray[Any], shape: tuple[int, ...], at: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[Any]:
    table = np.zeros(shape, values.dtype)
    table[at] = values
    return table


def emitted(mined: Mined, fixed: Fixed) -> Bools:
    """What a fixed rule takes [q, width]: the best of those that it lets through."""
    limit = rules.thresholds(fixed.rule, fixed.value, mined.lowest, mined.best)
    shape = mined.lists.score.shape
    passed = rules.passes(
        fixed.rule,
        mined.lists.score.ravel(),
        mined.rank.ravel(),
        np.repeat(limit, shape[1]),
        fixed.window,
    ).reshape(shape)
    return budget.choose(Lists(mined.lists.score, mined.lists.p, mined.lists.open & passed, mined.lists.room), 0.0)


def figures(mined: Mined, chosen: Bools) -> dict[str, float | None]:
    """leak; rows, the share of questions with a leak; hardness; fill; near_duplicates, the share with a cosine of at
    least NEAR with a known positive; judged_negatives, those kept of the candidates that people judged not relevant."""
    n, false = int(chosen.sum()), chosen & mined.hidden
    true = chosen & ~mined.hidden
    wanted = int(mined.lists.room.sum())
    wrong = int(mined.wrong.sum())
    return {
        "leak": int(false.sum()) / n if n else None,
        "rows": float(false.any(axis=1).mean()) if len(false) else None,
        "hardness": float(mined.lists.score[true].mean(dtype=np.float64)) if true.any() else None,
        "fill": n / wanted if wanted else None,
        "near_duplicates": int((chosen & mined.near).sum()) / n if n else None,
        "judged_negatives": int((chosen & mined.wrong).sum()) / wrong if wrong else None,
    }


def unit_of(mined: Mined) -> float:
    """`budget.spread` of the candidates."""
    query, column = np.nonzero(mined.lists.open)
    rows = pl.DataFrame({"query_id": query, "score": mined.lists.score[query, column]})
    return budget.spread(rows.lazy())


def price_at(mined: Mined, hardness: float) -> float:
    """The price at which the learned mask's negatives are as hard, or just harder."""
    low, high = -14.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        found = figures(mined, budget.choose(mined.lists, 2.0**middle))["hardness"]
        low, high = (middle, high) if found is not None and found > hardness else (low, middle)
    return float(2.0**low)


def at_hardness(mined: Mined, hardness: float) -> dict[str, float | None]:
    """The learned mask's figures at the price where its negatives are as hard, or just harder."""
    return figures(mined, budget.choose(mined.lists, price_at(mined, hardness)))


def report(mined: Mined) -> dict[str, Any]:
    """A set's `rules`, `equal_hardness` and `budgets`."""
    found = {name: figures(mined, emitted(mined, fixed)) for name, fixed in FIXED.items()}
    equal = []
    for name, of_rule in found.items():
        if of_rule["hardness"] is None:
            continue
        ours = at_hardness(mined, of_rule["hardness"])
        equal.append(
            {
                "rule": name,
                "hardness": of_rule["hardness"],
                "leak_rule": of_rule["leak"],
                "leak_learned": ours["leak"],
                "fill_rule": of_rule["fill"],
                "fill_learned": ours["fill"],
            }
        )
    unit = unit_of(mined)
    total = budget.tried(mined.lists, unit)
    budgets = []
    for share in BUDGETS:
        limit = budget.settle(total, share, unit)
        chosen = budget.choose(mined.lists, limit.price) & (mined.lists.p <= limit.ceiling)
        budgets.append({"max_false_negatives": share, "expected": limit.expected, **figures(mined, chosen)})
    return {"rules": found, "equal_hardness": equal, "budgets": budgets, "bins": bins(mined)}


def bins(mined: Mined, n: int = 10) -> list[dict[str, float]]:
    """Expected and observed share of hidden positives in `n` equally filled bins of rising p."""
    there = mined.lists.open
    p, hidden = mined.lists.p[there], mined.hidden[there]
    order = np.argsort(p, kind="stable")
    return [
        {"expected": float(p[part].mean(dtype=np.float64)), "observed": float(hidden[part].mean())}
        for part in np.array_split(order, n)
        if len(part)
    ]


def ratio(one: Mapping[str, Any]) -> float | None:
    """How many times lower the learned mask's leak is; one leaked negative less than none counts as a tenth of 1 %."""
    if not one["leak_rule"]:
        return None
    return float(one["leak_rule"] / max(one["leak_learned"], 1e-4))


def medians(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rule -> the median of `ratio` over the sets where the rule leaks."""
    found: dict[str, list[float]] = {}
    for of_set in sets.values():
        for one in of_set["equal_hardness"]:
            if (value := ratio(one)) is not None:
                found.setdefault(one["rule"], []).append(value)
    return {rule: float(np.median(values)) for rule, values in found.items()}


def prior_file(sets: Sequence[tuple[Collection, Floats, Bools]], command: str, encoder: str) -> dict[str, Any]:
    """prior.json: one model of all sets, and for each set one of the others, for reading it on that set.

    `sets`: collections with the features [n, len(FEATURES)] of their candidates and which of these are hidden.
    """
    tables = [(features, hidden) for _, features, hidden in sets]
    without = [
        {
            "digest": collection.digest,
            "name": collection.name,
            "model": learned.written(learned.fit_prior([*tables[:place], *tables[place + 1 :]])),
        }
        for place, (collection, _, _) in enumerate(sets if len(sets) > 1 else [])
    ]
    return {
        "what": "log odds that a candidate is a false negative: stages/negatives/learned.py reads this",
        "command": command,
        "encoder": encoder,
        "sets": {
            collection.name: {"candidates": len(hidden), "hidden": int(hidden.sum()), "digest": collection.digest}
            for collection, _, hidden in sets
        },
        "all": {"model": learned.written(learned.fit_prior(tables))},
        "without": without,
    }
