from collections.abc import Iterator

from stages.core.executor import InProcessExecutor, Worker, batch_by_size


def test_items_are_processed_lazily() -> None:
    done: list[str] = []

    def make():  # type: ignore[no-untyped-def]
        done.append("made")

        def letters(word: str) -> Iterator[str]:
            for letter in word:
                done.append(letter)
                yield letter.upper()

        return letters

    results = InProcessExecutor().map(Worker(make), iter(["ab", "", "c"]))
    assert done == []
    assert next(results) == "A"
    assert done == ["made", "a"]
    assert list(results) == ["B", "C"]
    assert done == ["made", "a", "b", "c"]


def test_pieces_are_of_like_parts_the_largest_first() -> None:
    sizes = [1, 4, 2, 3, 6, 2, 0, 1]  # the largest first: places 4 1 3 2 5 0 7 6, before each 0 6 10 13 15 17 18 19
    assert [piece.tolist() for piece in batch_by_size(sizes, 8)] == [[1, 4], [2, 3, 5], [0, 6, 7]]
    assert [piece.tolist() for piece in batch_by_size(sizes, 100)] == [[0, 1, 2, 3, 4, 5, 6, 7]]
