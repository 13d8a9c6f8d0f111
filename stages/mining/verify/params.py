"""Parameters of the step that verifies uncertain candidates."""

from stages.core.device import Device, Dtype
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.params import device_option, dtype_option, option, seed_option
from stages.mining.params import RiskPolicy

SELF_TRAINED = "self"
SELF_TRAINED_BASE = DEFAULT_ENCODER
"""The model that the rerankers of a self-trained verifier start from."""
SELF_TRAINED_FOLDS = 2
"""Rerankers of a self-trained verifier: each scores one fold of the queries and is trained on the others."""
SELF_TRAINED_MAX_QUERIES = 2_000
"""Training queries of a fold of a self-trained verifier, at most."""


class Params(RiskPolicy):
    """The verifier and the LLM judge, and how much they may read."""

    # the weights enter the key through `key_extras`
    verifier: str | None = option(
        None,
        "Cross-encoder that scores uncertain candidates, by folder or hub id. self trains one on this table.",
        is_model=True,
        exclude_from_key=True,
    )
    verifier_budget: int = option(
        0, "At most this many candidates for the verifier, the most uncertain first. 0 scores all.", flag=False, ge=0
    )
    verifier_max_length: int = option(
        256, "Tokens of query and document together that the verifier reads.", flag=False, ge=8
    )
    llm_judge: str | None = option(
        None, "URL of an OpenAI-compatible API that judges candidates, such as http://localhost:8000/v1.",
        exclude_from_key=True,
    )  # fmt: skip
    llm_judge_model: str | None = option(None, "Name of the model behind llm_judge.")
    llm_judge_budget: int = option(
        1000, "At most this many pairs for the LLM judge, those with the greatest effect first.", flag=False,
        ge=1,
    )  # fmt: skip

    # Without a verifier or LLM judge they do not matter; with one they enter the key through `key_extras`.
    seed: int = seed_option(exclude_from_key=True)
    device: Device = device_option()
    dtype: Dtype = dtype_option(exclude_from_key=True)

    @classmethod
    def fields_with_mark(cls, mark: str) -> set[str]:
        """The fields with a mark; those of `RiskPolicy` enter the key through `key_extras` too."""
        return super().fields_with_mark(mark) | (set(RiskPolicy.model_fields) if mark == "unkeyed" else set())
