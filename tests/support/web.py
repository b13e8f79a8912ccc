"""A web server on loopback whose files may change, break off, or be refused."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What is served, and how."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    status: int = 200
    location: str = ""
    """Where every path redirects to; empty for nowhere."""
    cut_after: int | None = None
    """Each answer breaks off after so many bytes; None for none."""
    gate: threading.Event | None = None
    """The second half of a file waits for it; None if nothing waits."""
    seen: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request, and its path."""


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        web = self.web
        web.seen.append({**self.headers, "path": self.path})
        data = web.files.get(self.path.partition("?")[0])
        if web.location or web.status != 200 or data is None:
            code = 302 if web.location else web.status if web.status != 200 else 404
            self.send_response(code)
            if web.location:
                self.send_header("Location", web.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = 0
        asked = self.headers.get("Range")
        if asked and web.ranges and self.headers.get("If-Range") in (None, web.etag):
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if web.etag is not None:
            self.send_header("ETag", web.etag)
        self.end_headers()
        end = len(data) if web.cut_after is None else begin + web.cut_after
        if web.gate is not None:
            self.wfile.write(data[begin : end // 2])
            begin = end // 2
            web.gate.wait(30)
        self.wfile.write(data[begin:end])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_files(**files: bytes):
    """Serve; the names of the files are given without their leading slash, with `_` for the dot."""
    web = Web(files={f"/{name.replace('_', '.')}": data for name, data in files.items()})
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
