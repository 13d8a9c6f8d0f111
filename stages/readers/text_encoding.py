"""Text files as streams: gzip, byte order marks, and a check of the encoding."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from stages.core.errors import InputError

_SAMPLE_BYTES = 1 << 20
_MAX_BAD_LINE_RATIO = 0.05
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def open_text(path: Path, encoding: str | None) -> Iterator[TextIO]:
    """Open a text file, gzip'd or not, with unchanged line ends.

    The encoding is that of a byte order mark, else `encoding`, else UTF-8. Bytes that are not in the encoding become
    lone surrogates, so that the caller can reject their rows. Raises `InputError` if over 5 % of the lines of the first
    MiB have such bytes (then the encoding is wrong), or if the gzip data is corrupt.
    """
    with open_bytes(path) as raw:
        sample = _read_sample(raw, path, _SAMPLE_BYTES)
        raw.seek(0)
        detected_encoding = _detect_encoding(path, sample, encoding)
        text = io.TextIOWrapper(raw, encoding=detected_encoding, errors="surrogateescape", newline="")
        try:
            yield text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_gzip_error(path) from error
        finally:
            text.detach()


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip if its first bytes are those of gzip."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20)) if is_gzip else file


def escape_file_name(name: Path | str) -> str:
    """A file's name as text that can be written anywhere; bytes of it that are not UTF-8 become escapes (\\xe9)."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def corrupt_gzip_error(path: Path) -> InputError:
    """The error for gzip data that ends early or fails its checksum."""
    return InputError(
        f"{escape_file_name(path.name)}: the gzip data is corrupt or cut short. Fetch or compress the file again."
    )


def _read_sample(raw: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return raw.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise corrupt_gzip_error(path) from error


def _detect_encoding(path: Path, sample: bytes, encoding: str | None) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return name
    chosen = encoding or "utf-8"
    try:
        codecs.lookup(chosen)
    except LookupError:
        raise InputError(f"encoding {chosen!r} is unknown. Python knows utf-8, gb18030 and others.") from None
    if encoding is None and sample.count(0) > len(sample) // 4:
        likely = "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
        raise InputError(
            f"{escape_file_name(path.name)}: not utf-8 text. It looks like {likely}: try encoding = {likely!r}."
        )
    bad, total = _count_undecodable_lines(sample, chosen)
    if bad and bad > _MAX_BAD_LINE_RATIO * total:
        guess = _guess_encoding(sample, chosen)
        fix = f"It looks like {guess}: try encoding = {guess!r}." if guess else "Name the right encoding."
        raise InputError(
            f"{escape_file_name(path.name)}: {bad} of the first {total} lines are not {chosen} text. {fix}"
        )
    return chosen


def _count_undecodable_lines(sample: bytes, encoding: str) -> tuple[int, int]:
    lines = sample.split(b"\n")
    if len(sample) == _SAMPLE_BYTES:
        lines.pop()  # it may be cut inside a character
    elif lines and not lines[-1]:
        lines.pop()
    bad = 0
    for line in lines:
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            bad += 1
    if bad and encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        return 0, len(lines)  # a line feed is not one byte there, so lines can't be judged singly
    return bad, len(lines)


def _guess_encoding(sample: bytes, claimed_encoding: str) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(sample[: 1 << 17].rpartition(b"\n")[0] or sample).best()
    if best is None or codecs.lookup(best.encoding) == codecs.lookup(claimed_encoding):
        return None
    return best.encoding.replace("_", "-")
