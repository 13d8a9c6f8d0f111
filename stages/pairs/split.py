"""Train, dev and test: which questions must stay together, and on which side each such unit falls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from stages.core.arrays import Ints
from stages.core.context import Summary
from stages.core.errors import InputError
from stages.core.schemas import SPLITS

_SPLIT_INDEX = {None: 0, "": 0, "train": 0, "dev": 1, "test": 2}
MAX_COMPONENT_RATIO = 0.2
"""A component with more than this share of the questions can't be put on one side; it is split by question."""

Edges = tuple[Ints, Ints]
"""(question, what it is tied to): questions that are tied to the same thing belong together."""


@dataclass(frozen=True)
class SplitRatios:
    """How to split: the shares of dev and test, the unit (component, question or group), and the seed."""

    dev: float
    test: float
    unit: str
    seed: int


@dataclass(frozen=True)
class SplitConstraints:
    """What ties `n_queries` questions (numbered in the order of their ids): each other's restatements, documents,
    groups.

    Documents and groups are numbered in the order of their ids, from 0. `groups` is None without a group column.
    """

    n_queries: int
    paraphrase_ids: Ints
    documents: Edges
    groups: Edges | None


@dataclass
class SplitAssignment:
    """For each question its side (an index into train, dev, test) and its unit: (kind, number) pairs in two columns.

    `unit_kind` 0 is a group, 1 a document, 2 a question; `unit_number` is that thing's place in the order of its ids.
    """

    split_index: npt.NDArray[np.int8]
    unit_kind: npt.NDArray[np.int8]
    unit_number: Ints
    notes: list[str] = field(default_factory=list)


def assign_splits(
    constraints: SplitConstraints,
    table_splits: npt.NDArray[np.int8] | None,
    ratios: SplitRatios,
    unit_name: Callable[[int, int], str],
) -> SplitAssignment:
    """Put each question on a side.

    `table_splits` is the table's own split for each question (0 train, 1 dev, 2 test), None without one; `unit_name`
    gives the id of a unit from its kind and number. Raises `InputError` where a group column is needed and lacking.

    A component is named by the smallest of its groups, else the smallest id of its positive documents, so a new or
    gone question on documents that have other questions moves nobody, unless it ties two components. What can move
    questions from one run to the next:
    - rows that tie components or untie them: a question with positives in two, a restatement, a shared group;
    - a smaller name: a component's smallest document goes, its text changes where ids are hashes of texts, or a
      document with a smaller id comes (one chance in n + 1 for n documents and ids that are hashes); so for groups;
    - a component that grows past a `MAX_COMPONENT_RATIO` share of the questions, or falls below it;
    - changes of the group column, of the table's own split, of the shares, the seed or the unit.
    A question that is its own unit (split by question, or from a giant component) moves only where it is restated by
    one with a smaller id.
    """
    if ratios.unit == "group" and constraints.groups is None:
        raise InputError("[pairs] split_by = group needs a group column. Name it: group under [pairs].")
    notes: list[str] = []
    if table_splits is not None and not table_splits.any():
        notes.append("the split column holds only 'train', so the questions are split by hash")
        table_splits = None
    if table_splits is None:
        found = _build_units(constraints, np.arange(constraints.n_queries), ratios, notes)
        found.split_index, found.notes = (
            _hash_units_to_splits(found, ratios.seed, ratios.dev, ratios.test, unit_name),
            notes,
        )
        return found
    table_splits = table_splits.copy()
    if ratios.test and 2 not in table_splits:
        notes.append("the table has its own dev split and no test split: its dev is used as test")
        table_splits[table_splits == 1] = 2
    assignment = SplitAssignment(
        table_splits,
        np.zeros(constraints.n_queries, dtype=np.int8),
        np.zeros(constraints.n_queries, dtype=np.int64),
        notes,
    )
    cut_dev = bool(ratios.dev) and 1 not in table_splits
    for split_index in range(len(SPLITS)):
        members = np.flatnonzero(table_splits == split_index)
        if not len(members):
            continue
        found = _build_units(constraints, members, ratios, notes)
        assignment.unit_kind[members], assignment.unit_number[members] = found.unit_kind, found.unit_number
        if split_index == 0 and cut_dev:
            notes.append(f"dev ({ratios.dev:.0%}) is cut from the table's own train split")
            assignment.split_index[members] = _hash_units_to_splits(found, ratios.seed, ratios.dev, 0.0, unit_name)
    return assignment


def resolve_table_splits(split_cells: pl.DataFrame, queries: pl.DataFrame) -> tuple[npt.NDArray[np.int8], int]:
    """The table's own side of each question, in order, from (question, split) and (question, loose).

    A question that stands in several splits, restated or not, must not be trained on: it is in test, else dev. Returns
    the sides and how many such questions there are.
    """
    indexed = split_cells.with_columns(side=pl.col("split").replace_strict(_SPLIT_INDEX, return_dtype=pl.Int8))
    last = indexed.join(queries, on="question").group_by("loose").agg(pl.col("side").max(), n=pl.col("side").n_unique())
    every = queries.join(last, on="loose").sort("question")
    return every["side"].to_numpy().astype(np.int8), int((every["n"] > 1).sum())


def hash_to_split(unit: str, seed: int, dev_ratio: float, test_ratio: float) -> str:
    """The side of a unit: xxh3-64 of seed and name as a fraction, below `test_ratio` test, below `test + dev` dev."""
    fraction = xxhash.xxh3_64_intdigest(f"{seed}:split:{unit}".encode()) / 2**64
    return "test" if fraction < test_ratio else "dev" if fraction < test_ratio + dev_ratio else "train"


def _hash_units_to_splits(
    assignment: SplitAssignment, seed: int, dev: float, test: float, unit_name: Callable[[int, int], str]
) -> Any:
    units, where = np.unique(assignment.unit_kind.astype(np.int64) << 40 | assignment.unit_number, return_inverse=True)
    names = (unit_name(int(unit >> 40), int(unit & ((1 << 40) - 1))) for unit in units)
    return np.array([SPLITS.index(hash_to_split(unit, seed, dev, test)) for unit in names], dtype=np.int8)[where]


def _build_units(
    constraints: SplitConstraints, members: Ints, ratios: SplitRatios, notes: list[str]
) -> SplitAssignment:
    """The units of some of the questions, as if there were no others."""
    place = np.full(constraints.n_queries, -1)
    place[members] = np.arange(len(members))
    questions: Edges = (np.arange(len(members)), members)
    restated: Edges = (questions[0], constraints.paraphrase_ids[members])
    groups = None if constraints.groups is None else _restrict_edges(constraints.groups, place)
    single = _name_components(len(members), [restated], [(2, questions)])
    if ratios.unit == "question":
        return single
    if ratios.unit == "group":
        assert groups is not None
        return _name_components(len(members), [restated, groups], [(0, groups), (2, questions)])
    documents = _restrict_edges(constraints.documents, place)
    known: list[tuple[int, Edges]] = [] if groups is None else [(0, groups)]
    found = _name_components(len(members), [restated, documents, *(tie for _, tie in known)], [*known, (1, documents)])
    _, where, sizes = np.unique(
        found.unit_kind.astype(np.int64) << 40 | found.unit_number, return_inverse=True, return_counts=True
    )
    is_oversized = sizes > max(1, MAX_COMPONENT_RATIO * len(members))
    if is_oversized.any():
        notes.append(
            f"{sizes[is_oversized].sum():,} of {len(members):,} questions are tied together in {is_oversized.sum()} "
            f"component(s) of "
            f"over {MAX_COMPONENT_RATIO:.0%} each: these are split by question, so documents may stand on two sides"
        )
        is_divided = is_oversized[where]
        found.unit_kind[is_divided], found.unit_number[is_divided] = (
            single.unit_kind[is_divided],
            single.unit_number[is_divided],
        )
    return found


def _restrict_edges(edges: Edges, place: Ints) -> Edges:
    question = place[edges[0]]
    return question[question >= 0], edges[1][question >= 0]


def _name_components(n_queries: int, edges: Sequence[Edges], names: Sequence[tuple[int, Edges]]) -> SplitAssignment:
    """Tie questions into components; each is named by its smallest tie of the first of `names` that it has."""
    component = find_components(n_queries, edges)
    kind = np.full(n_queries, -1, dtype=np.int8)
    number = np.full(n_queries, np.iinfo(np.int64).max)
    for code, (question, value) in reversed(names):
        smallest = np.full(n_queries, np.iinfo(np.int64).max)
        np.minimum.at(smallest, component[question], value)
        has = smallest < np.iinfo(np.int64).max
        kind[has], number[has] = code, smallest[has]
    return SplitAssignment(np.zeros(n_queries, dtype=np.int8), kind[component], number[component])


def find_components(n_nodes: int, edges: Sequence[Edges]) -> Ints:
    """The component of each of `n_queries` nodes, where nodes that share a tie of one kind belong together.

    >>> components(4, [(np.array([0, 1, 2]), np.array([7, 7, 5])), (np.array([2, 3]), np.array([1, 1]))]).tolist()
    [0, 0, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = [], []
    for node, value in edges:
        order = np.argsort(value, kind="stable")
        same = np.diff(value[order]) == 0
        rows.append(node[order][:-1][same])  # a chain through the nodes of one value: as few edges as will do
        columns.append(node[order][1:][same])
    row, column = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(n_nodes, n_nodes))
    found: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def summarise_splits(assignment: SplitAssignment, positives: pl.DataFrame, match_keys: pl.Series) -> Summary:
    """What there is on the sides, and what stands on several."""
    sizes = np.bincount(assignment.split_index, minlength=len(SPLITS)).tolist()
    side = pl.Series(assignment.split_index)
    per_query = positives.group_by("question").len()["len"].to_numpy()
    sides = positives.with_columns(side=side.gather(positives["question"]))
    shared = sides.group_by("document").agg(pl.col("side").n_unique())
    restated = pl.DataFrame({"loose": match_keys, "side": side}).group_by("loose").agg(pl.col("side").n_unique())
    return {
        "positives_per_query": {"mean": round(float(per_query.mean()), 3), "max": int(per_query.max())},
        "splits": dict(zip(SPLITS, sizes, strict=True)),
        "documents_across_splits": int((shared["side"] > 1).sum()),
        "paraphrases_across_splits": int((restated["side"] > 1).sum()),
    }


def count_split_changes(old: pl.DataFrame, new: pl.DataFrame) -> int:
    """How many questions stand on another side than before: `old` and `new` are queries tables (query_id, split)."""
    both = old.select("query_id", was="split").join(new.select("query_id", "split"), on="query_id")
    return int((both["was"] != both["split"]).sum())
