"""Near-duplicate documents: what is one document and what is two, by literal texts."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.pairs.near_duplicates import find_near_duplicates

ANSWER = "Open the settings, choose Security and press Reset. You get a mail within five minutes."


def cluster(*texts: str) -> list[str | None]:
    """The cluster of each text, by the letter of its first member."""
    ids = [chr(ord("a") + n) for n in range(len(texts))]
    documents = pl.DataFrame({"doc_id": ids, "text": texts})
    found = dict(find_near_duplicates(lambda: [documents]).iter_rows())
    return [found.get(one) for one in ids]


@pytest.mark.parametrize(
    "other",
    [
        "open the settings choose security and press reset you get a mail within five minutes",
        "Open the settings; choose “Security” and press “Reset”! You get a mail within five minutes.",
        "<p>Open the <b>settings</b>,&nbsp;choose Security and press Reset.</p>You get a mail within five minutes.",
        "OPEN THE SETTINGS, CHOOSE SECURITY AND PRESS RESET. YOU GET A MAIL WITHIN FIVE MINUTES.",
        "**Open the settings**, choose _Security_ and press `Reset`. You get a mail within five minutes.",
        f"Hi Anna,\n\n{ANSWER}\n\nBest regards,\nTom",
        f"Dear Ms. Smith, thank you for your message. {ANSWER}",
        f"Dear Ms. Smith, thank you for your message. {ANSWER} Best regards, Tom",
        f"{ANSWER} Please let us know if you need anything else. Kind regards, the support team",
        f"{ANSWER} This article was last updated by the documentation group in May.",
    ],
)
def test_one_document(other: str) -> None:
    assert cluster(ANSWER, other, "Something else that has many words of its own.") == ["a", "a", None]


@pytest.mark.parametrize(
    "other",
    [
        "Open the settings, choose Privacy and press Reset. You get a mail within five minutes.",
        "Open the settings, choose Security and press Reset. You get a mail within fifty minutes.",
        "Open the settings, choose Security and do not press Reset. You get a mail within five minutes.",
        "You get a mail within five minutes.",
        f"{ANSWER} But if you use the old app, none of this is there: ask the desk on the third floor for a paper form,"
        " fill it in with a black pen, have it signed by your manager, and bring it back on a Tuesday before noon.",
    ],
)
def test_two_documents(other: str) -> None:
    assert cluster(ANSWER, other) == [None, None]


def test_what_only_begins_like_a_farewell_is_part_of_the_document() -> None:
    texts = [f"The printer is on the second floor. Let us know {end}." for end in ("your badge number", "the colour")]
    long = [
        text + " It has to be printed on the form that you brought to the desk, with your name in capital letters," * 2
        for text in texts
    ]
    assert cluster(*long) == [None, None]


def test_another_heading_is_another_document() -> None:
    storage = "Keep this medicine in the container it came in, tightly closed, and out of reach of children."
    assert cluster(f"How do I store Carvedilol? {storage}", f"How do I store Dicyclomine? {storage}") == [
        None,
        None,
    ]


def test_greetings_differ_and_the_plain_answer_is_not_in_the_table() -> None:
    texts = [f"Hello {name}, {ANSWER} Best regards, {name[::-1]}" for name in ("Ann", "Bob", "Cleo")]
    assert cluster(*texts) == ["a", "a", "a"]


def test_a_footer_that_three_documents_hold() -> None:
    footers = ["Call 555 0100 from nine to five", "Find our shops on the map of the town"]
    others = [f"Shop number {n} sells things of the kind {n}{n}. {footers[n % 2]}." for n in range(6)]
    found = cluster(f"{ANSWER} {footers[0]}.", f"{ANSWER} {footers[1]}.", *others)
    assert found == ["a", "a"] + 6 * [None]


def test_chinese_greetings() -> None:
    answer = "请打开设置，选择安全，然后点击重置密码。五分钟之内您会收到一封邮件。"
    assert cluster(
        f"尊敬的王先生，您好！{answer}祝您生活愉快！", f"您好，{answer}", answer.replace("密码", "手机")
    ) == ["a", "a", None]


def test_texts_without_words_are_no_duplicates() -> None:
    assert cluster("?", "!", "...", "") == [None, None, None, None]


def test_no_documents() -> None:
    assert find_near_duplicates(list).columns == ["doc_id", "cluster"]


SENTENCES = st.lists(
    st.sampled_from(["red house stands here", "blue car drives there", "green tree grows now", "hi ann"]), max_size=5
)


@given(st.lists(SENTENCES, max_size=8), st.integers(1, 3), st.randoms())
def test_batches_and_order_change_nothing(texts: list[list[str]], size: int, random: object) -> None:
    documents = pl.DataFrame(
        {"doc_id": [f"d{n}" for n in range(len(texts))], "text": [". ".join(text) for text in texts]},
        schema={"doc_id": pl.String, "text": pl.String},
    )
    whole = find_near_duplicates(lambda: [documents])
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = documents[order]
    parts = [shuffled.slice(start, size) for start in range(0, len(texts), size)]
    assert find_near_duplicates(lambda: parts).equals(whole)
