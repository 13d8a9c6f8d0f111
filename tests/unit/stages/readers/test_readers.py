"""Readers: what comes in as text stays that text, what is broken is set aside or refused in words."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from stages.core.errors import InputError
from stages.readers.base import Cell, RowBatch, to_cell
from stages.readers.csv import read_delimited, sniff_delimiter
from stages.readers.dataframe import dataframe_source
from stages.readers.excel import read_excel
from stages.readers.files import detect_file_format, file_source, find_files, label_files
from stages.readers.json import read_json, read_jsonlines
from stages.readers.parquet import read_arrow, read_parquet


def whole(batches: Iterator[RowBatch]) -> tuple[dict[str, list[Cell]], list[int], list[tuple[int, str]]]:
    """Columns, row numbers and (row, reason) of rejects of all batches."""
    columns: dict[str, list[Cell]] = {}
    rows: list[int] = []
    rejected: list[tuple[int, str]] = []
    for batch in batches:
        for name, cells in batch.columns.items():
            columns.setdefault(name, []).extend(cells)
        rows += batch.row_numbers
        rejected += [(one.row_number, one.reason) for one in batch.rejected_rows]
    return columns, rows, rejected


def csv_of(tmp_path: Path, content: str | bytes, name: str = "faq.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_csv(tmp_path: Path, content: str | bytes, encoding: str | None = None) -> tuple[dict[str, list[Cell]], ...]:
    return whole(read_delimited(csv_of(tmp_path, content), "faq.csv", encoding))  # type: ignore[return-value]


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    columns, rows, rejected = read_csv(tmp_path, 'id,question\n007,"a, ""b""\nc"\n\n1e5, NA \n')
    assert columns == {"id": ["007", "1e5"], "question": ['a, "b"\nc', " NA "]}
    assert (rows, rejected) == ([1, 2], [])


def test_ragged_rows_are_rejected_by_number(tmp_path: Path) -> None:
    columns, rows, rejected = read_csv(tmp_path, "a,b\n1,2\n3\n4,5,6\n7,8,\n9,10\n")
    assert columns == {"a": ["1", "7", "9"], "b": ["2", "8", "10"]}
    assert rows == [1, 4, 5]
    assert rejected == [(2, "ragged row"), (3, "ragged row")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    columns, _, _ = read_csv(tmp_path, "frage;antwort\nWo?;Dört\n".encode(encoding))
    assert columns == {"frage": ["Wo?"], "antwort": ["Dört"]}


def test_a_wrong_encoding_is_an_error_that_names_the_likely_one(tmp_path: Path) -> None:
    content = "问题,答案\n" + "报告的发布机构是什么？,中国银行研究院全球经济金融研究课题组\n" * 20
    with pytest.raises(InputError, match=r"not utf-8 text.*encoding = .gb"):
        read_csv(tmp_path, content.encode("gb18030"))
    columns, _, _ = read_csv(tmp_path, content.encode("gb18030"), "gb18030")
    assert list(columns) == ["问题", "答案"]
    with pytest.raises(InputError, match=r"encoding = .utf-16-le"):
        read_csv(tmp_path, "question,answer\nWho?,He.\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="unknown"):
        read_csv(tmp_path, content, "utf-9")


def test_a_few_bad_bytes_come_through_marked(tmp_path: Path) -> None:
    columns, _, _ = read_csv(tmp_path, b"a,b\n" + b"x,y\n" * 30 + b"caf\xe9,z\n")
    assert columns["a"][-1] == "caf\udce9"


def test_an_unclosed_quote_is_an_error_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3 is not closed before the end of the file"):
        read_csv(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n')
    with pytest.raises(InputError, match=r"line 3 is not closed within 10,000 lines"):
        read_csv(tmp_path, 'a,b\n1,2\n3,"4\n' + "5,6\n" * 10_001 + '7,"8"\n')


def test_empty_files_and_lone_headers(tmp_path: Path) -> None:
    for content in ("", "\n \n", "\ufeff"):
        with pytest.raises(InputError, match="empty"):
            read_csv(tmp_path, content)
    assert read_csv(tmp_path, "a,b\n") == ({"a": [], "b": []}, [], [])  # type: ignore[comparison-overlap]


def test_a_large_cell_is_whole(tmp_path: Path) -> None:
    columns, _, _ = read_csv(tmp_path, "a,b\n1," + "x" * 2_000_000 + "\n")
    assert len(columns["b"][0] or "") == 2_000_000


def test_the_header_tells_the_delimiter() -> None:
    assert [sniff_delimiter(line) for line in ("a;b;c", "a\tb", '"a;b",c', "a|b", "question")] == [
        ";",
        "\t",
        ",",
        "|",
        ",",
    ]


def test_repeated_names_do_not_hide_one_another(tmp_path: Path) -> None:
    assert list(read_csv(tmp_path, "a,a,b\n1,2,3\n")[0]) == ["a", "a (2)", "b"]


def test_gzip_is_decompressed_and_damage_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 100_000)
    assert len(read_csv(tmp_path, packed)[1]) == 100_000
    with pytest.raises(InputError, match="corrupt or cut short"):
        read_csv(tmp_path, packed[: len(packed) // 2])


def test_json_lines(tmp_path: Path) -> None:
    lines = ['{"q": "a", "n": 7, "d": ["x", "y"]}', "not json", "", "[1]", '{"q": null, "e": 1.0}']
    columns, rows, rejected = whole(read_jsonlines(csv_of(tmp_path, "\n".join(lines)), "faq.jsonl"))
    assert columns == {"q": ["a", None], "n": ["7", None], "d": [["x", "y"], None], "e": [None, "1"]}
    assert rows == [1, 4]
    assert rejected == [(2, "not a JSON object"), (3, "not a JSON object")]
    with pytest.raises(InputError, match="empty"):
        whole(read_jsonlines(csv_of(tmp_path, ""), "faq.jsonl"))


@pytest.mark.parametrize(
    "value",
    [
        [{"q": "a"}, {"q": "b"}],
        {"q": ["a", "b"]},
        {"data": [{"q": "a"}, {"q": "b"}]},
        {"1": {"q": "a"}, "2": {"q": "b"}},
    ],
)
def test_json_of_several_shapes(tmp_path: Path, value: object) -> None:
    assert whole(read_json(csv_of(tmp_path, json.dumps(value)), "faq.json"))[0] == {"q": ["a", "b"]}


def test_json_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not valid JSON.*\.jsonl"):
        whole(read_json(csv_of(tmp_path, '{"a": 1}\n{"a": 2}'), "faq.json"))
    with pytest.raises(InputError, match="no list of objects"):
        whole(read_json(csv_of(tmp_path, "3"), "faq.json"))


def test_parquet_and_arrow(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [7, None], "d": [["a", "b"], []], "v": [[0.5], [1.5]], "t": [True, False]})
    expected = {"id": ["7", None], "d": [["a", "b"], []], "t": ["true", "false"]}
    frame.write_parquet(tmp_path / "t.parquet")
    assert whole(read_parquet(tmp_path / "t.parquet", "t"))[0] == expected
    frame.write_ipc(tmp_path / "t.arrow")
    assert whole(read_arrow(tmp_path / "t.arrow", "t"))[0] == expected
    frame.write_ipc_stream(tmp_path / "s.arrow")
    assert whole(read_arrow(tmp_path / "s.arrow", "t"))[0] == expected


def test_corrupt_parquet_and_arrow(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [str(number) for number in range(10_000)]})
    frame.write_parquet(tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    for broken in (content[:-100], b"PAR1", content[:500] + bytes(500) + content[1000:]):
        with pytest.raises(InputError, match="corrupt"):
            whole(read_parquet(csv_of(tmp_path, broken, "b.parquet"), "b.parquet"))
    with pytest.raises(InputError, match="corrupt"):
        whole(read_arrow(csv_of(tmp_path, b"ARROW1 nothing", "b.arrow"), "b.arrow"))


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "FAQ"
    for row in ([None], ["id", "question", "score"], [123, "a", 1.5], [], [124.0, "b", None], [125, "c", 2, "stray"]):
        sheet.append(row)
    book.create_sheet("Notes")
    book.save(tmp_path / "faq.xlsx")
    return tmp_path / "faq.xlsx"


def test_excel_numbers_read_as_written(workbook: Path) -> None:
    columns, rows, rejected = whole(read_excel(workbook, "faq.xlsx"))
    assert columns == {"id": ["123", "124"], "question": ["a", "b"], "score": ["1.5", None]}
    assert rows == [1, 3]
    assert rejected == [(4, "ragged row")]


def test_excel_sheets(workbook: Path, tmp_path: Path) -> None:
    assert file_source(workbook, "faq.xlsx", None, None, None).label == "faq.xlsx:FAQ"
    with pytest.raises(InputError, match=r"no sheet 'Faq'. Its sheets: 'FAQ', 'Notes'. Did you mean"):
        whole(read_excel(workbook, "faq.xlsx", "Faq"))
    with pytest.raises(InputError, match="sheet is empty"):
        whole(read_excel(workbook, "faq.xlsx", "Notes"))
    with pytest.raises(InputError, match="not an Excel workbook"):
        whole(read_excel(csv_of(tmp_path, "a,b\n1,2\n", "fake.xlsx"), "fake.xlsx"))


def test_frames_of_pandas_and_polars() -> None:
    table = pd.DataFrame({"id": [1.0, np.nan], "q": ["a", None], "d": [["x"], ("y", "z")]}, index=[9, 9])
    expected = {"id": ["1", None], "q": ["a", None], "d": [["x"], ["y", "z"]]}
    assert whole(dataframe_source(table, "t").read()) == (expected, [1, 2], [])
    polars = pl.DataFrame({"id": [1.0, None], "q": ["a", None], "d": [["x"], ["y", "z"]]})
    assert whole(dataframe_source(polars, "t").read()) == (expected, [1, 2], [])
    with pytest.raises(InputError, match="expected a pandas or polars DataFrame, got dict"):
        dataframe_source({}, "t")


def test_values_of_any_type_as_cells() -> None:
    assert to_cell({"text": ["a", "b"], "answer_start": [1, 2]}) == ["a", "b"]
    assert to_cell({"a": 1}) == '{"a": 1}'
    assert to_cell(np.array(["a"], dtype=object)) == ["a"]
    assert to_cell(pd.Timestamp("2024-01-02")) == "2024-01-02T00:00:00"
    assert [to_cell(value) for value in (pd.NA, pd.NaT, float("nan"), np.int64(3), False)] == [None] * 3 + [
        "3",
        "false",
    ]


def test_formats_by_name_else_by_first_bytes(tmp_path: Path) -> None:
    assert detect_file_format(Path("x.TSV.gz")) == "tsv"
    assert [detect_file_format(csv_of(tmp_path, text, "in")) for text in ('{"a": 1}', "[{}]", "a,b", b"PAR1")] == [
        *("jsonl", "json", "csv", "parquet")
    ]
    with pytest.raises(InputError, match=r"Save it as \.xlsx"):
        detect_file_format(Path("old.xls"))


def test_files_are_found_in_an_order_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    second, first = csv_of(tmp_path, "b"), csv_of(tmp_path, "a", "x/faq.csv")
    other = csv_of(tmp_path, "c", "alpha.csv")
    one = find_files([str(tmp_path / "*.csv"), str(first)], "--tables")
    assert one == find_files([str(first), str(second), str(other), str(other)], "--tables")
    assert one[0] == other.resolve()
    assert label_files(one) == ["alpha.csv", "faq.csv", "faq.csv#2"]


def test_a_label_is_never_given_twice() -> None:
    assert label_files([Path("x/a.csv"), Path("a.csv#2"), Path("y/a.csv"), Path("z/a.csv")]) == [
        *("a.csv", "a.csv#2", "a.csv#3", "a.csv#4")
    ]
    assert label_files([Path("x/a#2"), Path("y/a#2"), Path("x/a"), Path("y/a")]) == ["a#2", "a#2#2", "a", "a#3"]


def test_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=r"--tables: .*pipe\.csv is no file but a pipe"):
        find_files([str(tmp_path / "*.csv")], "--tables")
    with pytest.raises(InputError, match="standard input"):
        find_files(["-"], "--tables")
    with pytest.raises(InputError, match="can't be read: File name too long"):
        find_files(["x" * 300], "--tables")
    path = csv_of(tmp_path, "a,b\n1,2\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = file_source(path, "faq.csv", None, None, None)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"--tables: .*faq\.csv can't be read: Permission denied\."):
        find_files([str(path)], "--tables")
    with pytest.raises(InputError, match=r"faq\.csv: .*faq\.csv can't be read: Permission denied\."):
        list(source.read())
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match=r"--tables: .*faq\.csv can't be read: Permission denied\."):
        find_files([str(path)], "--tables")


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "xlsx"])
def test_a_file_name_may_be_no_utf8(tmp_path: Path, kind: str) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9." + kind.encode())
    plain = tmp_path / f"plain.{kind}"
    frame = pl.DataFrame({"question": ["Who?"]})
    writers: dict[str, Callable[[Path], object]] = {
        "csv": frame.write_csv,
        "parquet": frame.write_parquet,
        "arrow": frame.write_ipc,
        "xlsx": lambda to: frame.to_pandas().to_excel(to, index=False),
    }
    writers[kind](plain)
    try:
        plain.rename(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = find_files([str(tmp_path / "caf*")], "--tables")
    label = label_files(found)[0]
    assert label == f"caf\\xe9.{kind}"
    assert whole(file_source(found[0], label, None, None, None).read())[0] == {"question": ["Who?"]}
    with pytest.raises(InputError, match="Did you mean") as caught:
        find_files([str(path.with_name(f"cafe.{kind}"))], "--tables")
    assert f"caf\\xe9.{kind}" in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    csv_of(tmp_path, "a")
    with pytest.raises(InputError, match=r"--tables: there is no file .*faqs\.csv'. Did you mean faq\.csv\?"):
        find_files([str(tmp_path / "faqs.csv")], "--tables")
    with pytest.raises(InputError, match="no file matches"):
        find_files([str(tmp_path / "*.xyz")], "--tables")
    with pytest.raises(InputError, match="is a folder"):
        find_files([str(tmp_path)], "--tables")
    with pytest.raises(InputError, match=r"its folder .* does not exist"):
        find_files([str(tmp_path / "none" / "a.csv")], "--tables")
