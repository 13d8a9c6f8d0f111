"""What one training needs: groups, texts, settings and the dev queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.training.dev_evaluation import DevEvaluator
from stages.training.examples import TrainingGroup
from stages.training.params import Params


@dataclass(frozen=True)
class TrainingJob:
    """One training. It can be pickled, so that other processes can take part in it."""

    epoch_groups: Sequence[Sequence[TrainingGroup]]
    """The groups of each epoch; all epochs have the same number of groups."""
    queries: Mapping[str, str]
    """query_id -> text."""
    documents: Mapping[str, str]
    """doc_id -> text."""
    params: Params
    learning_rate: float
    dev_evaluator: DevEvaluator | None
    """Chooses the best epoch; None without dev queries."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one may have fewer groups."""
        return -(-len(self.epoch_groups[0]) // self.params.batch_size)

    @property
    def n_steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * len(self.epoch_groups)
