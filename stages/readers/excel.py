"""Excel workbooks (.xlsx, .xlsm), streamed row by row; formulas give their last stored value."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.readers.base import Cell, RejectedRow, RowBatch, batch_rows, to_cell
from stages.readers.text_encoding import escape_file_name


def sheet_names(path: Path) -> list[str]:
    """The names of the workbook's sheets, in its order."""
    workbook = _open_workbook(path)
    try:
        return list(workbook.sheetnames)
    finally:
        workbook.close()


def read_excel(path: Path, label: str, sheet: str | None = None) -> Iterator[RowBatch]:
    """Read one sheet, the first if none is named; its first row that is not blank is the header.

    Row numbers count the rows below the header from 1, blank ones included, so that they can be found in the sheet.
    Raises `InputError` for a file that is no workbook, an absent sheet (the sheets are listed), or a blank one.
    """
    workbook = _open_workbook(path)
    try:
        names = list(workbook.sheetnames)
        if sheet is not None and sheet not in names:
            folded = {name.casefold(): name for name in names}
            close = difflib.get_close_matches(sheet.casefold(), folded, 1)
            hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
            raise InputError(f"{label}: there is no sheet {sheet!r}. Its sheets: {', '.join(map(repr, names))}.{hint}")
        worksheet = workbook[sheet or names[0]]
        worksheet.reset_dimensions()  # some programs write a wrong size, and rows would be cut
        yield from batch_rows(_iter_sheet_rows(worksheet.iter_rows(values_only=True), label))
    finally:
        workbook.close()


def _iter_sheet_rows(
    rows: Iterator[tuple[Any, ...]], label: str
) -> Iterator[tuple[int, dict[str, Cell]] | RejectedRow]:
    header = next((row for row in rows if any(cell is not None for cell in row)), None)
    if header is None:
        raise InputError(f"{label}: the sheet is empty. Its first row must be the column names.")
    names = [str(to_cell(cell) or "").strip() for cell in header]
    for number, row in enumerate(rows, start=1):
        if all(cell is None for cell in row):
            continue
        cells = [to_cell(cell) for cell in row]
        if any(cell is not None for cell in cells[len(names) :]):
            yield RejectedRow(number, "ragged row", dict(zip(names, cells, strict=False)) | {"": cells[len(names) :]})
            continue
        padded = cells + [None] * (len(names) - len(cells))
        yield number, {name: cell for name, cell in zip(names, padded, strict=False) if name}


def _open_workbook(path: Path) -> Any:
    import warnings
    import zipfile

    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validations that do not concern the cells
            return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise InputError(
            f"{escape_file_name(path.name)}: not an Excel workbook, or corrupt ({type(error).__name__}). Save it "
            f"again as .xlsx."
        ) from error
