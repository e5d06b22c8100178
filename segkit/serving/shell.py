"""What surrounds every answer: the names by which the server may be called, and headers that bind browsers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Shell:
    """Refuses requests to other host names, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None = None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = _host_name(Headers(scope=scope).get("host", ""))
        if self._hosts is None or host in self._hosts:
            await self._app(scope, receive, send_with_headers)
            return
        refusal = JSONResponse(
            {"error": f"This server does not answer to the name {host!r:.80}. Allow it with --allow-host."}, 421
        )
        await refusal(scope, receive, send_with_headers)


def page_routes() -> list[Route]:
    """The page and its two files, read once: no path of a request reaches the disk."""
    routes = [Route("/favicon.ico", _no_icon)]
    for path, (name, media_type) in _FILES.items():
        content = (_STATIC / name).read_bytes()
        routes.append(Route(path, partial(_static, content=content, media_type=media_type)))
    return routes


async def _static(request: Request, content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type)


async def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
