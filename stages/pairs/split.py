"""Train, dev and test: which questions must stay together, and on which side each such unit falls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from stages.core.errors import InputError
from stages.core.schemas import SPLITS, Summary

_OWN = {None: 0, "": 0, "train": 0, "dev": 1, "test": 2}
GIANT = 0.2
"""A component with more than this share of the questions can't be put on one side; it is split by question."""

Ints = npt.NDArray[np.int64]
Tie = tuple[Ints, Ints]
"""(question, what it is tied to): questions that are tied to the same thing belong together."""


@dataclass(frozen=True)
class Shares:
    """How to split: the shares of dev and test, the unit (component, question or group), and the seed."""

    dev: float
    test: float
    by: str
    seed: int


@dataclass(frozen=True)
class Ties:
    """What ties `count` questions (numbered in the order of their ids): each other's restatements, documents, groups.

    Documents and groups are numbered in the order of their ids, from 0. `groups` is None without a group column.
    """

    count: int
    restated: Ints
    documents: Tie
    groups: Tie | None


@dataclass
class Assigned:
    """For each question its side (an index into train, dev, test) and its unit: (kind, number) pairs in two columns.

    `kind` 0 is a group, 1 a document, 2 a question; `number` is that thing's place in the order of its ids.
    """

    side: npt.NDArray[np.int8]
    kind: npt.NDArray[np.int8]
    number: Ints
    notes: list[str] = field(default_factory=list)


def assign(ties: Ties, own: npt.NDArray[np.int8] | None, shares: Shares, name: Callable[[int, int], str]) -> Assigned:
    """Put each question on a side.

    `own` is the table's own split for each question (0 train, 1 dev, 2 test), None without one; `name` gives the id
    of a unit from its kind and number. Raises `InputError` where a group column is needed and lacking.

    A component is named by the smallest of its groups, else the smallest id of its positive documents, so a new or
    gone question on documents that have other questions moves nobody, unless it ties two components. What can move
    questions from one run to the next:
    - rows that tie components or untie them: a question with positives in two, a restatement, a shared group;
    - a smaller name: a component's smallest document goes, its text changes where ids are hashes of texts, or a
      document with a smaller id comes (one chance in n + 1 for n documents and ids that are hashes); so for groups;
    - a component that grows past a `GIANT` share of the questions, or falls below it;
    - changes of the group column, of the table's own split, of the shares, the seed or the unit.
    A question that is its own unit (split by question, or from a giant component) moves only where it is restated by
    one with a smaller id.
    """
    if shares.by == "group" and ties.groups is None:
        raise InputError("--split-by group needs a group column: name it with --group")
    notes: list[str] = []
    if own is not None and not own.any():
        notes.append("the split column says only 'train', so the questions are split by hash")
        own = None
    if own is None:
        found = _units(ties, np.arange(ties.count), shares, notes)
        found.side, found.notes = _sides(found, shares.seed, shares.dev, shares.test, name), notes
        return found
    own = own.copy()
    if shares.test and 2 not in own:
        notes.append("the table has its own dev split and no test split: its dev is used as test")
        own[own == 1] = 2
    whole = Assigned(own, np.zeros(ties.count, dtype=np.int8), np.zeros(ties.count, dtype=np.int64), notes)
    cut_dev = bool(shares.dev) and 1 not in own
    for place in range(len(SPLITS)):
        members = np.flatnonzero(own == place)
        if not len(members):
            continue
        found = _units(ties, members, shares, notes)
        whole.kind[members], whole.number[members] = found.kind, found.number
        if place == 0 and cut_dev:
            notes.append(f"dev ({shares.dev:.0%}) is cut from the table's own train split")
            whole.side[members] = _sides(found, shares.seed, shares.dev, 0.0, name)
    return whole


def own_sides(said: pl.DataFrame, questions: pl.DataFrame) -> tuple[npt.NDArray[np.int8], int]:
    """The table's own side of each question, in order, from (question, split) and (question, loose).

    A question that stands in several splits, restated or not, must not be trained on: it is in test, else dev. Returns
    the sides and how many such questions there are.
    """
    places = said.with_columns(side=pl.col("split").replace_strict(_OWN, return_dtype=pl.Int8))
    last = (
        places.join(questions, on="question").group_by("loose").agg(pl.col("side").max(), n=pl.col("side").n_unique())
    )
    every = questions.join(last, on="loose").sort("question")
    return every["side"].to_numpy().astype(np.int8), int((every["n"] > 1).sum())


def side(unit: str, seed: int, dev: float, test: float) -> str:
    """The side of a unit: xxh3-64 of seed and name as a fraction, below `test` test, below `test + dev` dev."""
    fraction = xxhash.xxh3_64_intdigest(f"{seed}:split:{unit}".encode()) / 2**64
    return "test" if fraction < test else "dev" if fraction < test + dev else "train"


def _sides(found: Assigned, seed: int, dev: float, test: float, name: Callable[[int, int], str]) -> Any:
    units, where = np.unique(found.kind.astype(np.int64) << 40 | found.number, return_inverse=True)
    names = (name(int(unit >> 40), int(unit & ((1 << 40) - 1))) for unit in units)
    return np.array([SPLITS.index(side(unit, seed, dev, test)) for unit in names], dtype=np.int8)[where]


def _units(ties: Ties, members: Ints, shares: Shares, notes: list[str]) -> Assigned:
    """The units of some of the questions, as if there were no others."""
    place = np.full(ties.count, -1)
    place[members] = np.arange(len(members))
    questions: Tie = (np.arange(len(members)), members)
    restated: Tie = (questions[0], ties.restated[members])
    groups = None if ties.groups is None else _among(ties.groups, place)
    single = _named(len(members), [restated], [(2, questions)])
    if shares.by == "question":
        return single
    if shares.by == "group":
        assert groups is not None
        return _named(len(members), [restated, groups], [(0, groups), (2, questions)])
    documents = _among(ties.documents, place)
    known: list[tuple[int, Tie]] = [] if groups is None else [(0, groups)]
    found = _named(len(members), [restated, documents, *(tie for _, tie in known)], [*known, (1, documents)])
    _, where, sizes = np.unique(
        found.kind.astype(np.int64) << 40 | found.number, return_inverse=True, return_counts=True
    )
    giant = sizes > max(1, GIANT * len(members))
    if giant.any():
        notes.append(
            f"{sizes[giant].sum():,} of {len(members):,} questions are tied together in {giant.sum()} component(s) of "
            f"over {GIANT:.0%} each: these are split by question, so documents may stand on two sides"
        )
        torn = giant[where]
        found.kind[torn], found.number[torn] = single.kind[torn], single.number[torn]
    return found


def _among(tie: Tie, place: Ints) -> Tie:
    question = place[tie[0]]
    return question[question >= 0], tie[1][question >= 0]


def _named(count: int, ties: Sequence[Tie], names: Sequence[tuple[int, Tie]]) -> Assigned:
    """Tie questions into components; each is named by its smallest tie of the first of `names` that it has."""
    component = components(count, ties)
    kind = np.full(count, -1, dtype=np.int8)
    number = np.full(count, np.iinfo(np.int64).max)
    for code, (question, value) in reversed(names):
        smallest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(smallest, component[question], value)
        has = smallest < np.iinfo(np.int64).max
        kind[has], number[has] = code, smallest[has]
    return Assigned(np.zeros(count, dtype=np.int8), kind[component], number[component])


def components(count: int, ties: Sequence[Tie]) -> Ints:
    """The component of each of `count` nodes, where nodes that share a tie of one kind belong together.

    >>> components(4, [(np.array([0, 1, 2]), np.array([7, 7, 5])), (np.array([2, 3]), np.array([1, 1]))]).tolist()
    [0, 0, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = [], []
    for node, value in ties:
        order = np.argsort(value, kind="stable")
        same = np.diff(value[order]) == 0
        rows.append(node[order][:-1][same])  # a chain through the nodes of one value: as few edges as will do
        columns.append(node[order][1:][same])
    row, column = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(count, count))
    found: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def split_counts(assigned: Assigned, positives: pl.DataFrame, loose: pl.Series) -> Summary:
    """What there is on the sides, and what stands on several."""
    sizes = np.bincount(assigned.side, minlength=len(SPLITS)).tolist()
    side = pl.Series(assigned.side)
    per_query = positives.group_by("question").len()["len"].to_numpy()
    sides = positives.with_columns(side=side.gather(positives["question"]))
    shared = sides.group_by("document").agg(pl.col("side").n_unique())
    restated = pl.DataFrame({"loose": loose, "side": side}).group_by("loose").agg(pl.col("side").n_unique())
    return {
        "positives_per_query": {"mean": round(float(per_query.mean()), 3), "max": int(per_query.max())},
        "splits": dict(zip(SPLITS, sizes, strict=True)),
        "shared_documents": int((shared["side"] > 1).sum()),
        "shared_questions": int((restated["side"] > 1).sum()),
    }


def moved(old: pl.DataFrame, new: pl.DataFrame) -> int:
    """How many questions stand on another side than before: `old` and `new` are queries tables (query_id, split)."""
    both = old.select("query_id", was="split").join(new.select("query_id", "split"), on="query_id")
    return int((both["was"] != both["split"]).sum())
