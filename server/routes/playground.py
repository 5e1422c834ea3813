"""GET / and GET /playground/{name}: the page that tries the model, as it stands in server/playground/."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

__all__ = ["playground_router"]

FOLDER = Path(__file__).parent.parent / "playground"
PAGE = "index.html"
# By extension, and not as the machine's own tables have it: a module of another type is refused by browsers.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # asked for again each time, and answered with 304: the files change with the server, not with their names
    "cache-control": "no-cache",
    # text of a model is data; whatever of it might pass for a script is not run, and nothing leaves for elsewhere
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    """A file of the page, read once."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> "_File":
        content = path.read_bytes()
        return cls(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')

    def response(self, request: Request) -> Response:
        """The file, or 304 to who has it already."""
        headers = {**HEADERS, "etag": self.tag}
        known = request.headers.get("if-none-match", "").split(",")
        # a proxy that compresses makes the tag a weak one
        if any(tag.strip().removeprefix("W/") in (self.tag, "*") for tag in known):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def playground_router(folder: Path = FOLDER) -> APIRouter:
    """The page and the files it loads; a name that is none of them is a 404, whatever it means to a file system."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: _File.read(path) for path in sorted(folder.iterdir()) if path.suffix in MEDIA_TYPES}

    # programs look for a server with HEAD
    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return files[PAGE].response(request)

    @router.api_route("/playground/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        if name not in files or name == PAGE:
            raise HTTPException(404)
        return files[name].response(request)

    return router
