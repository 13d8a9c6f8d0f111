"""Which column plays which part: named by the user, or recognised by its usual names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.core.errors import InputError
from stages.pairs.cells import parse_texts
from stages.readers.base import Cell, TableSource

COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
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
    "negatives_column": ("negatives", "negative", "neg", "hard_negatives", "hard_negative"),
    "split": ("split", "dataset", "subset", "fold"),
}
"""For each part the names that are recognised, the likelier ones first (`doc`, often a file name, comes last)."""

_SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training", "训练", "训练集"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation", "验证", "验证集"), "dev"),
    **dict.fromkeys(("test", "testing", "测试", "测试集"), "test"),
}


def resolve_columns(
    column_options: Mapping[str, str | None], columns: Sequence[str], roles: Iterable[str], label: str
) -> dict[str, str]:
    """Choose a column for each of `roles`: the given name (an empty name means none), else the first known alias.

    A column has one role only; given names take precedence. Raises `InputError` if a given column does not exist.
    """
    column_by_role: dict[str, str] = {}
    for role in roles:
        if name := column_options.get(role):
            column_by_role[role] = find_column(name, columns, label, f"[pairs] {role}")
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(column.strip().casefold().replace(" ", "_"), column)
    for role in roles:
        if column_options.get(role) is None:
            available = [
                folded[alias]
                for alias in COLUMN_ALIASES[role]
                if alias in folded and folded[alias] not in column_by_role.values()
            ]
            if available:
                column_by_role[role] = available[0]
    return {role: column_by_role[role] for role in roles if role in column_by_role}


def find_column(name: str, columns: Sequence[str], label: str, option_name: str) -> str:
    """`name` if it is a column (case aside where only one fits), else `InputError` with what there is."""
    if name in columns:
        return name
    same_folded = [column for column in columns if column.casefold() == name.casefold()]
    if len(same_folded) == 1:
        return same_folded[0]
    close = difflib.get_close_matches(name, columns, 1, 0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{label}: there is no column {name!r} ({option_name}). {describe_columns(columns)}{hint}")


def describe_columns(columns: Sequence[str]) -> str:
    """The columns that a table has, as a sentence."""
    names = ", ".join(map(repr, columns[:40])) + (f" and {len(columns) - 40} more" if len(columns) > 40 else "")
    return f"Its columns: {names}."


def parse_split(value: str) -> str | None:
    """The split that a cell names (train, dev, test), "" for an empty cell, None for a word that is not known."""
    return _SPLIT_ALIASES.get(value.casefold()) if value else ""


def parse_relevance(value: str) -> int | None:
    """The relevance as a whole number of at least 0; None for an invalid one. An empty cell is a positive (1)."""
    if not value or value.casefold() in ("true", "yes"):
        return 1
    if value.casefold() in ("false", "no"):
        return 0
    try:
        number = float(value)
    except ValueError:
        return None
    return max(0, int(number)) if number == number and abs(number) < 2**31 and number == int(number) else None


def is_plausible_column(role: str, cells: Iterable[Cell]) -> bool:
    """Whether a recognised column's first cells fit its part: numbers for relevance, known words for split."""
    parse = {"relevance": parse_relevance, "split": parse_split}.get(role)
    return parse is None or all(isinstance(c, str) and parse(c.strip()) is not None for c in cells if c is not None)


PAIR_ROLES = tuple(COLUMN_ALIASES)
CORPUS_ROLES = ("document", "document_id", "title", "category", "group")


@dataclass
class ColumnMapping:
    """The columns chosen for a table's parts, and what a person should know about the choice."""

    column_by_role: dict[str, str]
    notes: list[str]


def choose_pair_columns(source: TableSource, column_options: Mapping[str, str | None]) -> ColumnMapping:
    """Choose the columns of a table of pairs.

    If the document column is missing, or recognised by name and empty in every row, the answers become the documents
    (question-answer pairs). Raises `InputError` if there is no column of questions or of documents.
    """
    columns, cells = read_first_cells(source)
    notes: list[str] = []
    column_by_role = resolve_columns(column_options, columns, PAIR_ROLES, source.label)
    for role in ("relevance", "split"):
        if (
            role in column_by_role
            and not column_options.get(role)
            and not is_plausible_column(role, cells[column_by_role[role]])
        ):
            notes.append(
                f"column {column_by_role[role]!r} looks like the {role} by name, but its values do not: not used"
            )
            del column_by_role[role]
    if "question" not in column_by_role:
        raise InputError(
            f"{source.label}: no column looks like the question. {describe_columns(columns)} Name it: question under "
            "[pairs] (if these are no column names, the table lacks its header line)."
        )
    if not column_options.get("document"):
        if (
            "document" in column_by_role
            and "answer" in column_by_role
            and _is_empty_column(source, column_by_role["document"], cells)
        ):
            notes.append(f"column {column_by_role.pop('document')!r} is empty in every row")
        if "document" not in column_by_role and column_options.get("document") is None and "answer" in column_by_role:
            column_by_role["document"] = column_by_role.pop("answer")
            notes.append(
                f"the answers are the documents (question-answer pairs): column {column_by_role['document']!r}"
            )
    elif column_by_role["document"].casefold() in COLUMN_ALIASES["answer"] and not column_options.get("answer"):
        column_by_role.pop("answer", None)
    if "document" not in column_by_role:
        raise InputError(
            f"{source.label}: no column looks like the document. {describe_columns(columns)} "
            "Name it: document under [pairs] (for question-answer pairs, the answer column)."
        )
    return ColumnMapping({role: column_by_role[role] for role in PAIR_ROLES if role in column_by_role}, notes)


def choose_corpus_columns(source: TableSource, column_options: Mapping[str, str | None]) -> dict[str, str]:
    """Choose the columns of a table of documents; the only column of a table is its text."""
    columns, _ = read_first_cells(source)
    present_options = {role: name for role, name in column_options.items() if name in columns or name == ""}
    column_by_role = resolve_columns(present_options, columns, CORPUS_ROLES, source.label)
    used_columns = set(column_by_role.values())
    if "document_id" not in column_by_role and (
        id_column := resolve_columns({}, [c for c in columns if c not in used_columns], ["id"], "")
    ):
        column_by_role["document_id"] = id_column["id"]
    if "document" not in column_by_role and len(columns) == 1:
        column_by_role = {"document": columns[0]}
    if "document" not in column_by_role:
        raise InputError(
            f"{source.label}: no column looks like the document. {describe_columns(columns)} Call it 'text'."
        )
    return column_by_role


def read_first_cells(source: TableSource) -> tuple[list[str], dict[str, list[Cell]]]:
    """A source's columns and their cells in its first batch that has rows."""
    columns: dict[str, list[Cell]] = {}
    for batch in source.read():
        columns = batch.columns or columns
        if batch.row_numbers:
            break
    return list(columns), columns


def _is_empty_column(source: TableSource, column: str, first: Mapping[str, list[Cell]]) -> bool:
    if any(parse_texts(cell) for cell in first[column]):
        return False
    return not any(parse_texts(cell) for batch in source.read() for cell in batch.columns.get(column, []))
