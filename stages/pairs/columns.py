"""Which column plays which part: named by the user, or recognised by its usual names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.core.errors import InputError
from stages.pairs.cells import values
from stages.readers.base import Cell, Source

USUAL: dict[str, tuple[str, ...]] = {
    "question": ("question", "query", "questions", "q", "question_text", "query_text", "user_question", "问题", "提问"),
    "document": (
        *("context", "document", "passage", "text", "positive", "positives", "pos", "paragraph", "content", "body"),
        *("document_text", "doc_text", "passage_text", "article", "contents", "doc"),
        *("上下文", "文档", "段落", "正文", "内容"),
    ),
    "answer": ("answer", "answers", "response", "reply", "answer_text", "答案", "回答", "回复"),
    "category": ("category", "topic", "类别", "分类"),
    "group": ("group", "group_id", "thread", "thread_id"),
    "id": ("id", "query_id", "question_id", "qid", "query-id", "_id", "uuid", "ticket", "ticket_id", "编号"),
    "document_id": ("document_id", "doc_id", "passage_id", "context_id", "pid", "docid", "corpus-id", "answer_id"),
    "title": ("title", "document_title", "doc_title", "标题"),
    "relevance": ("relevance", "rel", "label"),
    "negatives": ("negatives", "negative", "neg", "hard_negatives", "hard_negative"),
    "split": ("split", "dataset", "subset", "fold"),
}
"""For each part the names that are recognised, the likelier ones first (`doc`, often a file name, comes last)."""

_SPLITS = {
    **dict.fromkeys(("train", "training", "训练", "训练集"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation", "验证", "验证集"), "dev"),
    **dict.fromkeys(("test", "testing", "测试", "测试集"), "test"),
}


def recognise(
    named: Mapping[str, str | None], columns: Sequence[str], parts: Iterable[str], label: str
) -> dict[str, str]:
    """Choose a column for each of `parts`: the one named (an empty name means none), else the first usual name.

    A column plays one part only; those named come first. Raises `InputError` where a named column is not there.
    """
    chosen: dict[str, str] = {}
    for part in parts:
        if name := named.get(part):
            chosen[part] = exact(name, columns, label, f"--{part.replace('_', '-')}")
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(column.strip().casefold().replace(" ", "_"), column)
    for part in parts:
        if named.get(part) is None:
            free = [folded[usual] for usual in USUAL[part] if usual in folded and folded[usual] not in chosen.values()]
            if free:
                chosen[part] = free[0]
    return {part: chosen[part] for part in parts if part in chosen}


def exact(name: str, columns: Sequence[str], label: str, flag: str) -> str:
    """`name` if it is a column (case aside where only one fits), else `InputError` with what there is."""
    if name in columns:
        return name
    same = [column for column in columns if column.casefold() == name.casefold()]
    if len(same) == 1:
        return same[0]
    close = difflib.get_close_matches(name, columns, 1, 0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{label}: there is no column {name!r} ({flag}). {present(columns)}{hint}")


def present(columns: Sequence[str]) -> str:
    """The columns that a table has, as a sentence."""
    shown = ", ".join(map(repr, columns[:40])) + (f" and {len(columns) - 40} more" if len(columns) > 40 else "")
    return f"Its columns: {shown}."


def own_split(value: str) -> str | None:
    """The split that a cell names (train, dev, test), "" for an empty cell, None for a word that is not known."""
    return _SPLITS.get(value.casefold()) if value else ""


def relevance(value: str) -> int | None:
    """A judgement as a whole number, 0 for those below; None where it is no number. Empty cells are positives (1)."""
    if not value or value.casefold() in ("true", "yes"):
        return 1
    if value.casefold() in ("false", "no"):
        return 0
    try:
        number = float(value)
    except ValueError:
        return None
    return max(0, int(number)) if number == number and abs(number) < 2**31 and number == int(number) else None


def plausible(part: str, cells: Iterable[Cell]) -> bool:
    """Whether a recognised column's first cells fit its part: numbers for relevance, known words for split."""
    check = {"relevance": relevance, "split": own_split}.get(part)
    return check is None or all(isinstance(c, str) and check(c.strip()) is not None for c in cells if c is not None)


PAIR_PARTS = tuple(USUAL)
CORPUS_PARTS = ("document", "document_id", "title", "category", "group")


@dataclass
class Choice:
    """The columns chosen for a table's parts, and what a person should know about the choice."""

    parts: dict[str, str]
    notes: list[str]


def choose(source: Source, named: Mapping[str, str | None]) -> Choice:
    """Choose the columns of a table of pairs.

    Where the document column was only recognised and is empty in every row, or is absent, the answers become the
    documents (question-answer pairs). Raises `InputError` where there is no question or nothing to be the document.
    """
    columns, cells = first_cells(source)
    notes: list[str] = []
    parts = recognise(named, columns, PAIR_PARTS, source.label)
    for part in ("relevance", "split"):
        if part in parts and not named.get(part) and not plausible(part, cells[parts[part]]):
            notes.append(f"column {parts[part]!r} looks like the {part} by name, but its values do not: not used")
            del parts[part]
    if "question" not in parts:
        raise InputError(
            f"{source.label}: no column looks like the question. {present(columns)} Name it with --question "
            "(if these are no column names, the table lacks its header line)."
        )
    if not named.get("document"):
        if "document" in parts and "answer" in parts and _empty(source, parts["document"], cells):
            notes.append(f"column {parts.pop('document')!r} is empty in every row")
        if "document" not in parts and named.get("document") is None and "answer" in parts:
            parts["document"] = parts.pop("answer")
            notes.append(f"the answers are the documents (question-answer pairs): column {parts['document']!r}")
    elif parts["document"].casefold() in USUAL["answer"] and not named.get("answer"):
        parts.pop("answer", None)
    if "document" not in parts:
        raise InputError(
            f"{source.label}: no column looks like the document. {present(columns)} "
            "Name it with --document (for question-answer pairs, the answer column)."
        )
    return Choice({part: parts[part] for part in PAIR_PARTS if part in parts}, notes)


def choose_corpus(source: Source, named: Mapping[str, str | None]) -> dict[str, str]:
    """Choose the columns of a table of documents; the only column of a table is its text."""
    columns, _ = first_cells(source)
    wanted = {part: name for part, name in named.items() if name in columns or name == ""}
    parts = recognise(wanted, columns, CORPUS_PARTS, source.label)
    taken = set(parts.values())
    if "document_id" not in parts and (own := recognise({}, [c for c in columns if c not in taken], ["id"], "")):
        parts["document_id"] = own["id"]
    if "document" not in parts and len(columns) == 1:
        parts = {"document": columns[0]}
    if "document" not in parts:
        raise InputError(f"{source.label}: no column looks like the document. {present(columns)} Call it 'text'.")
    return parts


def first_cells(source: Source) -> tuple[list[str], dict[str, list[Cell]]]:
    """A source's columns and their cells in its first batch that has rows."""
    columns: dict[str, list[Cell]] = {}
    for batch in source.read():
        columns = batch.columns or columns
        if batch.rows:
            break
    return list(columns), columns


def _empty(source: Source, column: str, first: Mapping[str, list[Cell]]) -> bool:
    if any(values(cell) for cell in first[column]):
        return False
    return not any(values(cell) for batch in source.read() for cell in batch.columns.get(column, []))
