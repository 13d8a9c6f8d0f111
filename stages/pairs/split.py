"""Assign queries to train, dev and test; queries that share documents, groups or wording stay together."""

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
"""A component with a larger share of the queries is split query by query."""

Edges = tuple[Ints, Ints]
"""(query indices, values): queries with the same value belong together."""


@dataclass(frozen=True)
class SplitRatios:
    """How to split: the ratios of dev and test, the unit (component, question or group), and the seed."""

    dev: float
    test: float
    unit: str
    seed: int


@dataclass(frozen=True)
class SplitConstraints:
    """Which of `n_queries` queries must stay together: paraphrases, and queries that share a document or a group.

    Queries, documents and groups are numbered from 0 in the order of their ids. Without a group column, `groups` is
    None.
    """

    n_queries: int
    paraphrase_ids: Ints
    documents: Edges
    groups: Edges | None
    near_duplicates: Edges | None = None
    """Queries and the clusters of near-duplicate documents that their positives are in."""


@dataclass
class SplitAssignment:
    """The split of each query (an index into `SPLITS`) and its unit.

    A unit is named by a group (`unit_kind` 0), a document (1) or a query (2); `unit_number` is the number of that one.
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
    """Assign each query to a split.

    `table_splits` is the split column of the table (0 train, 1 dev, 2 test for each query), None without one;
    `unit_name` gives the id of a unit from its kind and number. Raises `InputError` if the unit is a group and there is
    no group column.

    A component is named by its smallest group id, else by the smallest id of its positive documents. A query that is
    added to or removed from documents with other queries changes no split, unless it connects two components. The split
    of other queries can change from one run to the next if
    - rows connect or separate components: a query with positives in both, a paraphrase, a shared group;
    - the name changes: the smallest document is removed, its text changes and ids are text hashes, or a document with a
      smaller id is added (probability 1 / (n + 1) for n documents with hashed ids); the same holds for groups;
    - a component becomes larger or smaller than a `MAX_COMPONENT_RATIO` share of the queries;
    - the group column, the split column, the ratios, the seed or the unit change.
    A query that is a unit by itself (split by question, or in an oversized component) changes only if a paraphrase with
    a smaller id is added.
    """
    if ratios.unit == "group" and constraints.groups is None:
        raise InputError("[pairs] split_by = group needs a group column. Name it: group under [pairs].")
    notes: list[str] = []
    if table_splits is not None and not table_splits.any():
        notes.append("the split column holds only 'train', so the questions are split by hash")
        table_splits = None
    if table_splits is None:
        assignment = _build_units(constraints, np.arange(constraints.n_queries), ratios, notes)
        assignment.split_index = _hash_units_to_splits(assignment, ratios.seed, ratios.dev, ratios.test, unit_name)
        assignment.notes = notes
        return assignment
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
        units = _build_units(constraints, members, ratios, notes)
        assignment.unit_kind[members], assignment.unit_number[members] = units.unit_kind, units.unit_number
        if split_index == 0 and cut_dev:
            notes.append(f"dev ({ratios.dev:.0%}) is cut from the table's own train split")
            assignment.split_index[members] = _hash_units_to_splits(units, ratios.seed, ratios.dev, 0.0, unit_name)
    return assignment


def resolve_table_splits(split_cells: pl.DataFrame, queries: pl.DataFrame) -> tuple[npt.NDArray[np.int8], int]:
    """The split index of each query by the split column, from (query_index, split) and (query_index, match_key).

    A query that is in several splits, itself or as a paraphrase, must not be trained on: it is put in test, else dev.
    Also returns the number of such queries.
    """
    indexed = split_cells.with_columns(pl.col("split").replace_strict(_SPLIT_INDEX, return_dtype=pl.Int8))
    by_match_key = indexed.join(queries, on="query_index").group_by("match_key")
    resolved = queries.join(
        by_match_key.agg(pl.col("split").max(), n_splits=pl.col("split").n_unique()), on="match_key"
    ).sort("query_index")
    return resolved["split"].to_numpy().astype(np.int8), int((resolved["n_splits"] > 1).sum())


def hash_to_split(unit: str, seed: int, dev_ratio: float, test_ratio: float) -> str:
    """The split of a unit, from the xxh3-64 of seed and name as a fraction: test below `test_ratio`, then dev."""
    fraction = xxhash.xxh3_64_intdigest(f"{seed}:split:{unit}".encode()) / 2**64
    return "test" if fraction < test_ratio else "dev" if fraction < test_ratio + dev_ratio else "train"


def _hash_units_to_splits(
    assignment: SplitAssignment, seed: int, dev: float, test: float, unit_name: Callable[[int, int], str]
) -> Any:
    units, inverse = np.unique(_pack_units(assignment), return_inverse=True)
    names = (unit_name(int(unit >> 40), int(unit & ((1 << 40) - 1))) for unit in units)
    return np.array([SPLITS.index(hash_to_split(name, seed, dev, test)) for name in names], dtype=np.int8)[inverse]


def _pack_units(assignment: SplitAssignment) -> Ints:
    return assignment.unit_kind.astype(np.int64) << 40 | assignment.unit_number


def _build_units(
    constraints: SplitConstraints, members: Ints, ratios: SplitRatios, notes: list[str]
) -> SplitAssignment:
    """The units of the queries `members`, as if there were no others."""
    position = np.full(constraints.n_queries, -1)
    position[members] = np.arange(len(members))
    queries: Edges = (np.arange(len(members)), members)
    paraphrases: Edges = (queries[0], constraints.paraphrase_ids[members])
    groups = None if constraints.groups is None else _restrict_edges(constraints.groups, position)
    single = _name_components(len(members), [paraphrases], [(2, queries)])
    if ratios.unit == "question":
        return single
    if ratios.unit == "group":
        assert groups is not None
        return _name_components(len(members), [paraphrases, groups], [(0, groups), (2, queries)])
    documents = _restrict_edges(constraints.documents, position)
    names = [(1, documents)] if groups is None else [(0, groups), (1, documents)]
    edges = [paraphrases, *(edges for _, edges in names)]
    if constraints.near_duplicates:
        edges.append(_restrict_edges(constraints.near_duplicates, position))
    units = _name_components(len(members), edges, names)
    _, inverse, sizes = np.unique(_pack_units(units), return_inverse=True, return_counts=True)
    is_oversized = sizes > max(1, MAX_COMPONENT_RATIO * len(members))
    if is_oversized.any():
        notes.append(
            f"{sizes[is_oversized].sum():,} of {len(members):,} questions are tied together in {is_oversized.sum()} "
            f"component(s) of over {MAX_COMPONENT_RATIO:.0%} each: these are split by question, so documents may be in "
            f"two splits"
        )
        is_divided = is_oversized[inverse]
        units.unit_kind[is_divided] = single.unit_kind[is_divided]
        units.unit_number[is_divided] = single.unit_number[is_divided]
    return units


def _restrict_edges(edges: Edges, position: Ints) -> Edges:
    query = position[edges[0]]
    return query[query >= 0], edges[1][query >= 0]


def _name_components(n_queries: int, edges: Sequence[Edges], names: Sequence[tuple[int, Edges]]) -> SplitAssignment:
    """Group queries into components; each is named by its smallest value of the first of `names` that has one."""
    component = find_components(n_queries, edges)
    kind = np.full(n_queries, -1, dtype=np.int8)
    number = np.full(n_queries, np.iinfo(np.int64).max)
    for code, (query, value) in reversed(names):
        smallest = np.full(n_queries, np.iinfo(np.int64).max)
        np.minimum.at(smallest, component[query], value)
        is_named = smallest < np.iinfo(np.int64).max
        kind[is_named], number[is_named] = code, smallest[is_named]
    return SplitAssignment(np.zeros(n_queries, dtype=np.int8), kind[component], number[component])


def find_components(n_nodes: int, edges: Sequence[Edges]) -> Ints:
    """The component of each of `n_nodes` nodes; nodes with the same value in one of `edges` are connected.

    >>> find_components(4, [(np.array([0, 1, 2]), np.array([7, 7, 5])), (np.array([2, 3]), np.array([1, 1]))]).tolist()
    [0, 0, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = [], []
    for node, value in edges:
        order = np.argsort(value, kind="stable")
        same = np.diff(value[order]) == 0
        rows.append(node[order][:-1][same])  # a chain through the nodes of one value has the fewest edges
        columns.append(node[order][1:][same])
    row, column = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(n_nodes, n_nodes))
    components: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return components


def summarise_splits(
    assignment: SplitAssignment, positives: pl.DataFrame, near_duplicates: pl.DataFrame, match_keys: pl.Series
) -> Summary:
    """The sizes of the splits, and how many documents, clusters of near duplicates and paraphrases are in several.

    `positives`: query_index, document_index; `near_duplicates`: query_index, cluster of the positives that have one.
    """
    sizes = np.bincount(assignment.split_index, minlength=len(SPLITS)).tolist()
    split = pl.Series(assignment.split_index)
    per_query = positives.group_by("query_index").len()["len"].to_numpy()

    def count_across(keys: pl.Series, query_index: pl.Series | None = None) -> int:
        frame = pl.DataFrame({"key": keys, "split": split if query_index is None else split.gather(query_index)})
        return len(frame.group_by("key").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1))

    return {
        "positives_per_query": {"mean": round(float(per_query.mean()), 3), "max": int(per_query.max())},
        "splits": dict(zip(SPLITS, sizes, strict=True)),
        "documents_across_splits": count_across(positives["document_index"], positives["query_index"]),
        "near_duplicates_across_splits": count_across(near_duplicates["cluster"], near_duplicates["query_index"]),
        "paraphrases_across_splits": count_across(match_keys),
    }


def count_split_changes(old: pl.DataFrame, new: pl.DataFrame) -> int:
    """How many queries are in another split in `new` than in `old` (queries tables: query_id, split)."""
    both = old.select("query_id", old_split="split").join(new.select("query_id", "split"), on="query_id")
    return int((both["old_split"] != both["split"]).sum())
