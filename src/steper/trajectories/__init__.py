"""`steper trajectories`: a page to read a run's trajectories on, or those of two runs side by side.

A run may hold gigabytes: one pass notes where each trajectory lies and what the choices of the page
need, and a trajectory is read again only when it is opened. A run may still be growing: what it
has written since is taken in at each look. The page is served to this machine only, or written to
one file with the first trajectories inside, to be passed on.

>>> browse([Path("runs/eval")], build=None, port=8765, out=Path("page.html"), limit=200,
...     open_browser=False)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import webbrowser
from base64 import b64encode
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from steper.errors import SteperError
from steper.store import write_atomic
from steper.trajectories.views import Runs

# ---- the page --------------------------------------------------------------------------------


def render(data: Mapping[str, Any] | None = None) -> str:
    """The page; with ``data`` of ``Runs.embedded`` inside it needs no server.

    Texts of runs are hostile. The page shows them as text only; should one ever slip through, the
    policy lets no script run but the page's own, told by its hash.
    """
    source = (resources.files("steper.trajectories") / "page.html").read_text(encoding="utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{_hash_of(source, 'style')}'",
            f"script-src 'sha256-{_hash_of(source, 'script')}'",
            "connect-src 'self'" if data is None else "connect-src 'none'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # Within JSON "<" stands in strings only; without it no text can end the element.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be written
    return source.replace("{{policy}}", policy).replace("{{data}}", text)


def _hash_of(source: str, tag: str) -> str:
    """Base64 SHA-256 of the one plain element of this tag."""
    content = source.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
    return b64encode(hashlib.sha256(content.encode()).digest()).decode()


# ---- the server --------------------------------------------------------------------------------


class Reply(NamedTuple):
    """Status code, content type and body."""

    status: int
    kind: str
    body: str


def respond(runs: Runs, target: str) -> Reply:
    """Answer one GET; whatever is asked, the answer is a page or JSON."""
    try:
        path, query = urlsplit(target).path, urlsplit(target).query
        asked = parse_qs(query, keep_blank_values=True, max_num_fields=200)
        match path:
            case "/":
                return Reply(200, "text/html", render())
            case "/api/page":
                text, number = _one(asked, "q", ""), _one(asked, "page", "1")
                if not (number.isascii() and number.isdigit() and 0 < int(number) < 10**9):
                    raise SteperError(f"page must be a number from 1, not {number!r}.")
                return _json(200, runs.page(asked, text, int(number)))
            case "/api/trajectory":
                shown = runs.view(_one(asked, "id", ""))
                return _json(200, shown) if shown else _fault(404, "There is no such trajectory.")
            case _:
                return _fault(404, "There is no such page.")
    except (SteperError, ValueError) as error:
        return _fault(400, str(error))


def _one(asked: dict[str, list[str]], name: str, default: str) -> str:
    """Take out the one value of a parameter."""
    values = asked.pop(name, [default])
    if len(values) > 1:
        raise SteperError(f"{name} is given {len(values)} times.")
    return values[0]


def _json(status: int, data: Any) -> Reply:
    return Reply(status, "application/json", json.dumps(data, ensure_ascii=False))


def _fault(status: int, message: str) -> Reply:
    return _json(status, {"error": message})


class Server(ThreadingHTTPServer):
    """Serves the page of some runs to this machine.

    Raises:
        SteperError: if the port is taken or not ours to take.
    """

    daemon_threads = True

    def __init__(self, runs: Runs, port: int) -> None:
        self.runs = runs
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise SteperError(
                f"port {port} cannot be had: {error.strerror}.",
                where="--port",
                fix="Name another one, or 0 for any that is free.",
            ) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30
    server_version = "steper"
    sys_version = ""

    def do_GET(self) -> None:
        # Another site may point its own name at this address; its pages must not read ours.
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0].lower()
        if host in ("localhost", "127.0.0.1"):
            reply = respond(self.server.runs, self.path)
        else:
            reply = _fault(403, "Only http://127.0.0.1 and http://localhost are served.")
        body = reply.body.encode("utf-8", "replace")
        self.send_response(reply.status)
        for name, value in (
            ("Content-Type", f"{reply.kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""


# ---- the command --------------------------------------------------------------------------------


def browse(
    runs: Sequence[Path],
    *,
    build: Path | None,
    port: int,
    out: Path | None,
    limit: int,
    open_browser: bool,
) -> Path | None:
    """Serve the page until Ctrl-C, or write it to a file.

    Args:
        runs: one or two folders made by ``steper rollout`` or ``steper evaluate``.
        build: a folder made by ``steper build`` from one of them, for its filters' verdicts.
        port: to serve at, on this machine only; 0 for any free one.
        out: write one file with the first ``limit`` trajectories instead.
        limit: how many.
        open_browser: whether to open the page.

    Returns:
        The file written, if any.

    Raises:
        SteperError: on bad input, or if the port is taken.
    """
    if out is not None and out.is_dir():
        raise SteperError("is a folder.", where=f"--out {out}", fix="Name an HTML file.")
    found = Runs(runs, build=build)
    if out is not None:
        write_atomic(out, render(found.embedded(limit)))
        return out
    with Server(found, port) as server:
        print(f"{found.title}: {server.url} (Ctrl-C ends it)", flush=True)
        if open_browser:
            _open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded.")
    return None


def _open(url: str) -> None:
    """Open the page, unless there is only a browser that would take over the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:
        browser.open(url)
