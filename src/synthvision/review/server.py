"""The review page's server: loopback unless told otherwise, nothing from elsewhere, no file but the study's images."""

from __future__ import annotations

import hashlib
import re
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from synthvision.review.desk import NAME_LENGTH, Desk, Sent
from synthvision.review.store import ConflictError

PAGE = Path(__file__).parent / "page"
FILES = {  # all that is served beside the API
    "app.js": "text/javascript",
    "outbox.js": "text/javascript",
    "viewer.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
OPEN = ("/", "/api/session", *(f"/{name}" for name in FILES))  # without a token: they tell nothing of the study
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "synthvision-review"
BODY = 16_384  # bytes; a decision has some hundred
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # patients' images stay out of the browser's disk cache
}

Role = Literal["read", "adjudicate"]
Name = Annotated[str, Query(max_length=NAME_LENGTH)]


@dataclass(frozen=True)
class Address:
    """Where the page is served.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    host: str
    port: int  # 0: any that is free
    names: Sequence[str]  # other names under which readers reach it, for instance through a proxy

    def __post_init__(self) -> None:
        if self.host in ("", "0.0.0.0", "::"):
            raise ValueError(
                f"stage.host must be one address of this machine, by which readers open the page; it is {self.host!r}"
            )
        if not 0 <= self.port < 65536:
            raise ValueError(f"stage.port must be a number from 0 to 65535; it is {self.port}")

    @property
    def needs_token(self) -> bool:
        """Whether others than this machine's user may reach it."""
        return self.host not in LOOPBACK or bool(self.names)

    @property
    def hosts(self) -> set[str]:
        """The names that a request may ask for; another one comes from a page that only pretends to be ours."""
        own = set(LOOPBACK) if self.host in LOOPBACK else {self.host}
        return own | set(self.names)


class Decision(BaseModel):
    """A decision or undo as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(pattern=r"^[0-9a-f-]{36}$")
    reader: str = Field(max_length=NAME_LENGTH)
    role: Role
    item: str = Field(pattern=r"^[0-9a-f]{32}$")
    kind: Literal["decide", "undo"]
    verdict: Literal["accept", "reject", "unsure", ""]
    reason: str = Field(max_length=100)
    note: str = Field(max_length=500)
    shown_ms: int = Field(ge=0, le=10**9)
    supersedes: str = Field(max_length=64)
    page: str = Field(pattern=r"^[0-9a-f]{12}$")


class Session(BaseModel):
    """The token that the server printed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: str = Field(max_length=100)


def page_version() -> str:
    """Return a digest of the page's files: with each decision stands on which page it was made."""
    digest = hashlib.sha256()
    for name in ("index.html", *FILES):
        digest.update((PAGE / name).read_bytes())
    return digest.hexdigest()[:12]


def application(desk: Desk, address: Address, token: str = "") -> FastAPI:
    """Return the web application.

    Args:
        desk: what is reviewed.
        address: whose names requests may ask for.
        token: without it nothing of the study is told; empty: none is needed.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    session = secrets.token_urlsafe(32)  # not the token: that is seen once, by the page
    _add_guard(app, address, session if token else "")
    _add_errors(app)
    _add_page(app)
    _add_desk(app, desk)

    @app.post("/api/session")
    def begin(sent: Session) -> Response:
        if token and not secrets.compare_digest(sent.token.encode(), token.encode()):
            return PlainTextResponse("this is not the token that the server printed", 401)
        response = Response(status_code=204)
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict")
        return response

    return app


def _add_guard(app: FastAPI, address: Address, session: str) -> None:
    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refusal(request, address.hosts, session)
        response = PlainTextResponse(refusal[1], refusal[0]) if refusal else await proceed(request)
        response.headers.update(HEADERS)
        return response


def _refusal(request: Request, hosts: set[str], session: str) -> tuple[int, str] | None:
    host = request.headers.get("host", "")
    if re.sub(r":\d*$", "", host).strip("[]").lower() not in hosts:
        return 421, "this server is not the one that was asked for"
    if session and request.url.path not in OPEN:
        sent = request.cookies.get(COOKIE, "")
        if not secrets.compare_digest(sent.encode(), session.encode()):
            return 401, "open the address with the token that the server printed"
    if request.method == "POST":
        origin = request.headers.get("origin", "")
        if origin and origin.partition("://")[2] != host:
            return 403, "sent from another site"
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "JSON is wanted"  # what another site cannot send without being asked first
        if int(request.headers.get("content-length", BODY + 1)) > BODY:
            return 413, "too long"
    return None


def _add_errors(app: FastAPI) -> None:
    kinds: dict[type[Exception], int] = {KeyError: 404, PermissionError: 403, ValueError: 422}
    for kind, status in kinds.items():
        app.add_exception_handler(kind, _answer(status))


def _answer(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_request: Request, error: Exception) -> Response:
        text = "there is no such item" if isinstance(error, KeyError) else str(error)
        return JSONResponse({"error": text}, status)

    return answer


def _add_page(app: FastAPI) -> None:
    index = (PAGE / "index.html").read_text(encoding="utf-8").replace("PAGE_VERSION", page_version())
    app.get("/")(_file(index.encode(), "text/html"))
    for name, media_type in FILES.items():
        app.get(f"/{name}")(_file((PAGE / name).read_bytes(), media_type))


def _file(content: bytes, media_type: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=media_type)


def _add_desk(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/study")
    def study() -> Response:
        return JSONResponse(desk.study())

    @app.get("/api/queue")
    def queue(reader: Name, role: Role) -> Response:
        return JSONResponse(desk.queue(reader, role))

    @app.post("/api/decisions")
    def decide(sent: Decision) -> Response:
        try:
            return JSONResponse(desk.add(Sent(**sent.model_dump())))
        except ConflictError as conflict:
            return JSONResponse(desk.refused(conflict), 409)

    @app.get("/api/images/{token}")
    def image(token: str, reader: Name, role: Role) -> Response:
        return Response(desk.picture(reader, role, token), media_type="image/png")

    @app.get("/api/findings/{token}")
    def finding(token: str, reader: Name, role: Role) -> Response:
        return JSONResponse(desk.finding(reader, role, token))

    @app.get("/api/guides/{number}")
    def guide(number: int) -> Response:
        return Response(desk.guide(number), media_type="image/png")


class _Server(uvicorn.Server):
    """Ends on Ctrl-C without raising it anew: that is how a session ends, and no failure."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(desk: Desk, address: Address, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        desk: what is reviewed.
        address: where.
        say: told the page's address once it can be opened.

    Raises:
        ValueError: the port is taken, or the address is none of this machine's.
    """
    listener = _listen(address)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24) if address.needs_token else ""
    name = f"[{address.host}]" if ":" in address.host else address.host
    say(
        f"review page: http://{name}:{port}/{'#' + token if token else ''} (Ctrl-C ends it; decisions are kept at once)"
    )
    if token:
        say("The token in the address is told this once. What is sent can be read on the way: put TLS in front.")
    _Server(settings(application(desk, address, token))).run(sockets=[listener])


def settings(app: FastAPI) -> uvicorn.Config:
    """Return how the application is served: without logs of who asked for what, and ended within two seconds."""
    return uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=2,
    )  # fmt: skip


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        raise ValueError(f"stage.host={address.host} stage.port={address.port}: {reason}; set another one") from error
    return listener
