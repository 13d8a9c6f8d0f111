"""Encode on a GPU: as `encode_command`, against sentence-transformers' default and its float16, with more texts."""

from tests.benchmarks.encode import check, matrix_rate, ours, peer, prepare
from tests.benchmarks.work import Goal, Work

WORK = Work(
    about="texts on disk to vectors on disk, all-MiniLM-L6-v2, on a GPU",
    sizes={"texts": 150_000},
    scaled=frozenset({"texts"}),
    prepare=prepare,
    sides={
        "ours": ours,
        "sentence-transformers": peer(),
        "its float16": peer("float16"),
        "matrix rate": matrix_rate,
    },
    goals=(
        Goal("sentence-transformers", over="sentence-transformers", under="ours", at_least=5),
        Goal("its float16", over="its float16", under="ours", at_least=1.5),
        Goal("matrix rate", over="ours", under="matrix rate", figure="gflops", at_least=0.75),
    ),
    check=check,
    gpu=True,
)
