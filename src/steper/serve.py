"""`steper index serve`: offer an index over HTTP, for many workers at once.

>>> serve_index(open_index("runs/index"), port=8765)  # doctest: +SKIP
bm25 index of 17,871 passages at http://127.0.0.1:8765
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from steper.errors import SteperError
from steper.retrieval.info import Index, needs
from steper.retrieval.remote import LIMITS, Limits

if TYPE_CHECKING:
    import uvicorn

_SHUTDOWN_S = 60
"""How long searches under way may take once the server is asked to stop."""

_KEEP_ALIVE_S = 60
"""How long an idle connection stays open; workers search every few seconds."""


def serve_index(
    index: Index, *, host: str = "127.0.0.1", port: int = 8765, limits: Limits = LIMITS
) -> None:
    """Serve until the process is told to stop, and then finish the searches under way.

    Args:
        index: what to offer.
        host: the address to listen at. There is no login: one that others can reach, as 0.0.0.0,
            lets all of them search.
        port: 0 takes a free one, which is printed.
        limits: what a request may ask for.

    Raises:
        SteperError: if the address is in use or not this machine's, or libraries are missing.
    """
    server = server_of(index, limits)
    listener = listen(host, port)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    print(f"{index.info.kind} index of {index.info.passages:,} passages at {url}")
    print(f"try: {example(url)}", flush=True)
    server.run(sockets=[listener])


def example(url: str) -> str:
    """A command that searches the index at an address."""
    from steper.retrieval.server import EXAMPLE

    return f"curl -s {url}/search -H 'content-type: application/json' -d '{EXAMPLE}'"


def server_of(index: Index, limits: Limits) -> uvicorn.Server:
    """The server of an index; ``run(sockets=[listen(…)])`` starts it.

    Raises:
        SteperError: if the libraries for it are missing.
    """
    try:
        import uvicorn

        from steper.retrieval.server import app
    except ImportError:
        raise needs("serve", "an index server") from None
    config = uvicorn.Config(
        app(index, limits),
        http="h11",  # the same answers to malformed HTTP, whatever else is installed
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; they wait until the server runs.

    Raises:
        SteperError: if there is no such address here, or it is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SteperError(
            f"cannot be listened at: {getattr(error, 'strerror', None) or error}.",
            where=f"{host}:{port}",
            fix="Choose another --port (0 takes a free one) or --host.",
        ) from None
    # Inherited by every connection. asyncio sets it only where it made the socket itself; without
    # it the second half of an answer waits 40 ms for the receipt of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
