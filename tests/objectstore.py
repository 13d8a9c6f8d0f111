"""An object store on this machine that speaks as much of S3 as Arrow's client asks for: whole objects, no versions."""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """Objects by "bucket/key": (content, when it was written); `requests` are the methods and keys, in order."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: str | None = None
        """Keys that end so can't be written."""
        self.address = ""

    def put(self, name: str, content: bytes, written: float = 1e9) -> None:
        self.objects[name] = (content, written)

    def url(self, place: str) -> str:
        options = f"scheme=http&endpoint_override={self.address}&region=us-east-1"
        return f"s3://someone:secret@{place}?{options}"


def _joined(chunks: BinaryIO) -> bytes:
    """The data of chunks SIZE[;...] CRLF data CRLF, up to the one of size 0 and the lines that trail it."""
    whole = b""
    while size := int(chunks.readline().split(b";")[0], 16):
        whole += chunks.read(size)
        chunks.readline()
    while chunks.readline().strip():
        pass
    return whole


@contextmanager
def serving() -> Iterator[Store]:
    """The store, while it can be asked."""
    store, uploads = Store(), dict[str, dict[int, bytes]]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _asked(self) -> tuple[str, dict[str, list[str]]]:
            parts = urlsplit(self.path)
            name = unquote(parts.path).strip("/")
            store.requests.append((self.command, name))
            return name, parse_qs(parts.query, keep_blank_values=True)

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _missing(self) -> None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", Content_Type="application/xml")

        def do_HEAD(self) -> None:
            name, _ = self._asked()
            if name in store.objects:
                content, written = store.objects[name]
                self._answer(200, Content_Length=str(len(content)), Last_Modified=formatdate(written, usegmt=True))
            else:
                self._answer(200 if "/" not in name else 404)

        def do_GET(self) -> None:
            name, query = self._asked()
            if "list-type" in query:
                self._list(name, query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
            elif name not in store.objects:
                self._missing()
            else:
                content, written = store.objects[name]
                asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                start, end = (int(asked[1]), int(asked[2] or len(content))) if asked else (0, len(content))
                part = content[start : end + 1]
                range_headers = (
                    {"Content_Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"} if asked else {}
                )
                self._answer(
                    206 if asked else 200, part, Last_Modified=formatdate(written, usegmt=True), **range_headers
                )

        def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
            found, folders = "", set()
            for name, (content, written) in sorted(store.objects.items()):
                key = name.removeprefix(f"{bucket}/")
                if key == name or not key.startswith(prefix):
                    continue
                rest = key.removeprefix(prefix)
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                    continue
                when = datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
                found += f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><LastModified>{when}"
                found += "</LastModified></Contents>"
            found += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            self._answer(200, body.encode(), Content_Type="application/xml")

        def _body(self) -> bytes:
            """What was sent, out of HTTP's chunks and then those of AWS."""
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = _joined(self.rfile)
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return _joined(io.BytesIO(body)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

        def do_PUT(self) -> None:
            name, query = self._asked()
            body = self._body()
            if store.refuse and name.endswith(store.refuse):
                self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")
            elif "partNumber" in query:
                uploads[name][int(query["partNumber"][0])] = body
                self._answer(200, ETag='"part"')
            else:
                if "/" in name:
                    store.put(name, body)
                self._answer(200, ETag='"whole"')

        def do_POST(self) -> None:
            name, query = self._asked()
            self._body()
            if store.refuse and name.endswith(store.refuse):
                self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")
            elif "uploads" in query:
                uploads[name] = {}
                body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
                self._answer(200, body, Content_Type="application/xml")
            else:
                store.put(name, b"".join(part for _, part in sorted(uploads.pop(name).items())))
                body = b"<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
                self._answer(200, body, Content_Type="application/xml")

        def do_DELETE(self) -> None:
            name, _ = self._asked()
            store.objects.pop(name, None)
            self._answer(204)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
