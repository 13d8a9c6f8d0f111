from collections.abc import Iterator

from stages.engine import InProcess, Worker


def test_each_item_is_done_when_its_results_are_asked_for() -> None:
    done: list[str] = []

    def make():  # type: ignore[no-untyped-def]
        done.append("made")

        def letters(word: str) -> Iterator[str]:
            for letter in word:
                done.append(letter)
                yield letter.upper()

        return letters

    results = InProcess().map(Worker(make), iter(["ab", "", "c"]))
    assert done == []
    assert next(results) == "A"
    assert done == ["made", "a"]
    assert list(results) == ["B", "C"]
    assert done == ["made", "a", "b", "c"]
