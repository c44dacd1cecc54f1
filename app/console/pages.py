"""The console's routes: one page and the files that it is made of, all read once and served from memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

STATIC = Path(__file__).with_name("static")
"""Where the page's files lie in the package."""

PAGE = "index.html"
"""The file that `/` and `/console` answer with."""

MEDIA_TYPES: Mapping[str, str] = {
    "api.js": "text/javascript; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "items.js": "text/javascript; charset=utf-8",
    "log.js": "text/javascript; charset=utf-8",
    "permission.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "text.js": "text/javascript; charset=utf-8",
}
"""Every file that `/console/static/` serves; no other path reaches the disk."""

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'none'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What an agent says ends up on this page: nothing but our own files may run, and nothing may frame it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 for who has it; `no-cache` because a new release keeps the names."""
        headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": self.etag}
        known = {
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        }
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read(name: str, media_type: str) -> _File:
    content = (STATIC / name).read_bytes()
    return _File(content=content, media_type=media_type, etag=f'"{sha256(content).hexdigest()[:32]}"')


def router() -> APIRouter:
    """The page and its files, open without a key: they hold no data of anybody."""
    page = _read(PAGE, "text/html; charset=utf-8")
    files = {name: _read(name, media_type) for name, media_type in MEDIA_TYPES.items()}
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    @routes.api_route("/console", methods=["GET", "HEAD"])
    async def console(request: Request) -> Response:
        """The console."""
        return page.answer(request)

    @routes.api_route("/console/static/{file}", methods=["GET", "HEAD"])
    async def static_file(request: Request, file: str) -> Response:
        """A file of the console."""
        if file not in files:
            raise HTTPException(404)
        return files[file].answer(request)

    return routes
