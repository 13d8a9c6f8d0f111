"""The training data as the trainer reads it: one data set of all epochs, the rows of each step, and their texts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from torch.utils.data import BatchSampler

from stages.training.examples import TrainingGroup


class EpochBatchSampler(BatchSampler):  # type: ignore[misc]
    """Rows of the data set in order, `batch_size` at a time; no batch spans two epochs, whose lengths are given."""

    def __init__(self, epoch_sizes: Sequence[int], batch_size: int) -> None:
        self.epoch_sizes = epoch_sizes
        self.batch_size = batch_size
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for rows in self.epoch_sizes:
            for first in range(0, rows, self.batch_size):
                yield list(range(start + first, start + min(first + self.batch_size, rows)))
            start += rows

    def __len__(self) -> int:
        return sum(-(-rows // self.batch_size) for rows in self.epoch_sizes)


class GroupCollator(CrossEncoderDataCollator):  # type: ignore[misc]
    """Turns rows of ids into a batch of texts, so that each text is held once, however often it is sampled."""

    def __init__(self, queries: Mapping[str, str], documents: Mapping[str, str]) -> None:
        super().__init__(preprocess_fn=None)
        self.queries = queries
        self.documents = documents

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "query": [self.queries[row["query"]] for row in rows],
            "documents": [[self.documents[doc_id] for doc_id in row["documents"]] for row in rows],
        }
        if any(row["weight"] for row in rows):
            batch["weight"] = [row["weight"] or [1.0] * len(row["documents"]) for row in rows]
        # all rows of a batch are of one epoch: either all have labels, or none
        return batch | ({"label": [row["label"] for row in rows]} if rows[0]["label"] else {})


def build_dataset(epoch_groups: Sequence[Sequence[TrainingGroup]]) -> Any:
    """One row for each group: the ids of its query and documents, and the documents' labels and weights."""
    groups_in_order = [group for groups in epoch_groups for group in groups]
    columns = {
        "query": [group.query_id for group in groups_in_order],
        "documents": [list(group.documents) for group in groups_in_order],
        "label": [list(group.labels) for group in groups_in_order],
        "weight": [list(group.weights) for group in groups_in_order],
    }
    features = {"query": Value("string"), "documents": List(Value("string"))}
    features |= dict.fromkeys(("label", "weight"), List(Value("float64")))
    return Dataset.from_dict(columns, Features(features))
