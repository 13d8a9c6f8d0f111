"""The settings of the evaluation."""

from stages.core.device import Device, Dtype
from stages.core.params import BaseParams, device_option, dtype_option, option, seed_option
from stages.statistics.bootstrap import bootstrap_samples_option


class RetrieverParams(BaseParams):
    """The keys of [evaluate] that the retrievers' figures depend on."""

    top_k: int = option(50, "Documents per question that are reranked: the retriever's best.", ge=1)
    max_queries: int = option(
        300,
        "At most this many queries of dev and of test each, sampled by hash. 0 takes all.",
        ge=0,
    )
    bootstrap_samples: int = bootstrap_samples_option()
    seed: int = seed_option()


class Params(RetrieverParams):
    """[evaluate]"""

    device: Device = device_option()
    dtype: Dtype = dtype_option()
