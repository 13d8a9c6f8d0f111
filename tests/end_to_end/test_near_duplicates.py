"""A table of tickets whose answers come from templates: near duplicates are one document everywhere."""

import csv
import json
import random
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import Project

TOPICS = [
    "password", "invoice", "refund", "delivery", "address", "coupon", "warranty", "account", "newsletter", "receipt",
    "voucher", "return", "payment", "parcel", "login", "subscription", "size", "colour", "manual", "battery",
]  # fmt: skip
TEMPLATES = {
    topic: f"To settle the matter of your {topic}, open the page {topic} of the portal and press the button on it. "
    f"The team for {topic} matters then writes to you within {n + 2} days."
    for n, topic in enumerate(TOPICS)
}
NAMES = ["Anna", "Bob", "Chen", "Dora", "Emil", "Fatima", "Gus", "Hana", "Ivo", "Jun"]
GREETINGS = ["Hi {}, ", "Dear {}, thank you for your message. ", "Hello {}! ", ""]
FAREWELLS = [" Best regards, {}", " Kind regards, {} from support", "", " Please let us know if this helps. {}"]


def write_tickets(path: Path) -> dict[str, str]:
    """200 tickets, 120 of which have a template's answer with another greeting; returns answer -> topic of these."""
    draw = random.Random(0)
    rows, topics = [], {}
    for n in range(200):
        topic = TOPICS[n % len(TOPICS)]
        question = (
            f"ticket {n}: {draw.choice(['what about', 'help with', 'question on'])} my {topic}, case {n * 37 % 991}"
        )
        if n % 5 < 3:
            answer = draw.choice(GREETINGS).format(draw.choice(NAMES)) + TEMPLATES[topic]
            answer += draw.choice(FAREWELLS).format(draw.choice(NAMES))
            topics[" ".join(answer.split())] = topic
        else:
            answer = f"Case {n} is with {draw.choice(NAMES)}, who looks at {topic} number {n * 91 % 977} on shelf {n}."
        rows.append((question, answer))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    return topics


@pytest.fixture
def tickets(project: Project) -> tuple[Project, dict[str, str]]:
    return project, write_tickets(project.folder / "faq.csv")


def test_no_template_is_in_two_splits_and_none_is_a_negative_of_its_own_question(
    tickets: tuple[Project, dict[str, str]],
) -> None:
    project, topics = tickets
    done = project.prep("mine-negatives", "--num-negatives", "5", "--json")
    assert done.returncode == 0, done.stderr
    pairs = json.loads(done.stdout)["summary"]["pairs"]
    assert pairs["near_duplicate_documents"] >= 50
    assert pairs["near_duplicates_across_splits"] == pairs["documents_across_splits"] == 0

    [folder] = (project.work / "runs" / "pairs").iterdir()
    queries, qrels, corpus = (pl.read_parquet(folder / f"{name}.parquet") for name in ("queries", "qrels", "corpus"))
    topic = pl.col("text").replace_strict(topics, default=None, return_dtype=pl.String)
    answers = qrels.join(queries, on="query_id").join(corpus, on="doc_id").with_columns(topic=topic).drop_nulls("topic")
    assert answers.group_by("topic").agg(pl.col("split").n_unique())["split"].to_list() == [1] * len(
        set(topics.values())
    )

    [mined] = (project.work / "runs" / "sample").glob("*/mined.jsonl")
    lines = [json.loads(line) for line in mined.read_text().splitlines()]
    assert len(lines) > 50
    for line in lines:
        of_positives = {topics[text] for text in line["pos"] if text in topics}
        of_negatives = [topics[text] for text in line["neg"] if text in topics]
        assert not of_positives & set(of_negatives)
        assert len(of_negatives) == len(set(of_negatives)), "a template is one document among the negatives too"
