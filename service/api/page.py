"""The web page: static files of the package, served under a strict content security policy."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
def index() -> FileResponse:
    return _file(FOLDER / "index.html")


@router.get("/docs")
def docs() -> FileResponse:
    return _file(FOLDER / "docs.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def file(name: Annotated[str, PathParameter(pattern=r"^[a-z0-9-]{1,40}\.[a-z0-9]{2,4}$")]) -> FileResponse:
    path = FOLDER / name
    if path.suffix not in MEDIA_TYPES or not path.is_file():
        raise HTTPException(404, f"there is no page file {name}")
    return _file(path)


def _file(path: Path) -> FileResponse:
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=HEADERS)
