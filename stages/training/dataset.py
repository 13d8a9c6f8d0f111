"""What is trained on, as a trainer reads it: one data set of all epochs, the rows of each step, and their texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from torch.utils.data import BatchSampler

from stages.training.examples import Group

if TYPE_CHECKING:
    from stages.training.stage import Params


@dataclass(frozen=True)
class Curriculum:
    """The groups of all epochs, their texts by id, and how they are trained on."""

    epochs: Sequence[Sequence[Group]]
    queries: Mapping[str, str]
    texts: Mapping[str, str]
    params: "Params"
    learning_rate: float

    @property
    def batches(self) -> "Batches":
        """The rows of each step."""
        return Batches([len(groups) for groups in self.epochs], self.params.batch_size)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.batches) // len(self.epochs)


class Batches(BatchSampler):  # type: ignore[misc]
    """Rows of the data set in order, `batch_size` at a time; no batch spans two epochs (given by their lengths)."""

    def __init__(self, epochs: Sequence[int], batch_size: int) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for rows in self.epochs:
            for first in range(0, rows, self.batch_size):
                yield list(range(start + first, start + min(first + self.batch_size, rows)))
            start += rows

    def __len__(self) -> int:
        return sum(-(-rows // self.batch_size) for rows in self.epochs)


class Texts(CrossEncoderDataCollator):  # type: ignore[misc]
    """Rows of ids to a batch of texts: each text is held once, however often it is drawn."""

    def __init__(self, queries: Mapping[str, str], texts: Mapping[str, str]) -> None:
        super().__init__(preprocess_fn=None)
        self.queries = queries
        self.texts = texts

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "query": [self.queries[row["query"]] for row in rows],
            "documents": [[self.texts[doc_id] for doc_id in row["documents"]] for row in rows],
        }
        if any(row["weight"] for row in rows):
            batch["weight"] = [row["weight"] or [1.0] * len(row["documents"]) for row in rows]
        # a batch is of one epoch, so it has labels throughout or nowhere
        return batch | ({"label": [row["label"] for row in rows]} if rows[0]["label"] else {})


def dataset(epochs: Sequence[Sequence[Group]]) -> Any:
    """One row a group: the ids of its query and of its documents, and the documents' labels and weights."""
    rows = [group for groups in epochs for group in groups]
    columns = {
        "query": [group.query_id for group in rows],
        "documents": [list(group.documents) for group in rows],
        "label": [list(group.labels) for group in rows],
        "weight": [list(group.weights) for group in rows],
    }
    features = {"query": Value("string"), "documents": List(Value("string"))}
    features |= dict.fromkeys(("label", "weight"), List(Value("float64")))
    return Dataset.from_dict(columns, Features(features))
