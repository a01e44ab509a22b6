"""The body of POST /segment: the video streams to storage while it comes in, the fields are few and small."""

from collections.abc import AsyncIterator
from pathlib import PurePath

import filetype
from anyio import CancelScope, to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.storage.folder import Storage, Upload
from uvos.contract import SegmentParams
from uvos.errors import EmptyUpload, InvalidParameters, NotAVideo, RequestTooSlow, UploadTooLarge

CHUNK = 2**20  # bytes gathered before they go to disk in a thread
SIGNATURE_BYTES = 8192  # more than any container needs to be told
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 64
LIST_FIELDS = {"tau", "format"}
# What workers decode, by `filetype`'s names; the other containers are told by `check_signature` itself.
CONTAINERS = {"mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "3gp", "wmv", "flv", "ogg", "ogv"}
TRANSPORT_STREAMS = ((0, 188), (4, 192))  # MPEG-TS, M2TS: where the first packet begins, how long packets are


class ReceivedForm:
    """What came in: the upload with its bytes on disk, and the fields as text."""

    def __init__(self, storage: Storage, *, max_upload_bytes: int, expected_bytes: int | None) -> None:
        self.storage = storage
        self.max_upload_bytes = max_upload_bytes
        self.expected_bytes = expected_bytes
        self.upload: Upload | None = None
        self.filename = ""
        self.fields: list[tuple[str, str]] = []
        self._pending = bytearray()
        self._seen = 0
        self._name = ""
        self._value = bytearray()
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_video = False

    # --- callbacks of the parser

    def on_part_begin(self) -> None:
        self._headers, self._header_name, self._header_value = {}, b"", b""
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_video = self._name == "video"
        if not self._in_video:
            if len(self.fields) >= MAX_FIELDS:
                raise InvalidParameters("too many fields", limit=MAX_FIELDS, actual=len(self.fields) + 1)
            return
        if self.upload is not None:
            raise InvalidParameters("video: send one file", limit=1, actual=2)
        if b"filename" not in options:
            raise InvalidParameters("video: send it as a file, not as text")
        self.filename = options[b"filename"].decode("utf-8", "replace")
        self.upload = self.storage.new_upload(self.expected_bytes)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_video:
            self._seen += end - start
            if self._seen > self.max_upload_bytes:
                raise UploadTooLarge(
                    f"the video is larger than {self.max_upload_bytes} bytes",
                    limit=self.max_upload_bytes,
                    actual=self._seen,
                )
            self._pending += data[start:end]
            return
        if len(self._value) + end - start > MAX_FIELD_BYTES:
            raise InvalidParameters(
                f"{self._name[:64]}: the value is too long",
                limit=MAX_FIELD_BYTES,
                actual=len(self._value) + end - start,
            )
        self._value += data[start:end]

    def on_part_end(self) -> None:
        if not self._in_video:
            self.fields.append((self._name, self._value.decode("utf-8", "replace")))
        self._in_video = False

    # --- to disk

    def flush(self) -> None:
        """Write what has come in; blocks."""
        if self.upload is None or not self._pending:
            return
        if self.upload.size == 0:
            check_signature(bytes(self._pending[:SIGNATURE_BYTES]))
        self.upload.write(bytes(self._pending))
        self._pending.clear()

    @property
    def pending(self) -> int:
        return len(self._pending)


async def receive(request: Request, storage: Storage, *, max_upload_bytes: int) -> ReceivedForm:
    """Stream a multipart body to storage.

    The caller ends the upload with `with form.upload:`, here it is removed when anything goes wrong.

    Raises:
        InvalidParameters: this is no multipart form, or it holds more than the API knows.
        NotAVideo: the first bytes are not those of a video container.
        UploadTooLarge, EmptyUpload, StorageFull: as they say.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidParameters(
            "send multipart/form-data with the video in the field `video`",
            limit="multipart/form-data",
            actual=kind.decode("latin-1")[:100] or "nothing",
        )
    length = request.headers.get("content-length", "")
    form = ReceivedForm(
        storage, max_upload_bytes=max_upload_bytes, expected_bytes=int(length) if length.isdecimal() else None
    )
    try:
        await _parse(request.stream(), form, options[b"boundary"])
        if form.upload is None:
            raise EmptyUpload("there is no file in the field `video`")
        if form.upload.size == 0:
            raise EmptyUpload("the file in the field `video` is empty", limit=1, actual=0)
    except BaseException:
        if form.upload is not None:
            with CancelScope(shield=True):  # also where the request was cancelled
                await to_thread.run_sync(form.upload.__exit__)
        raise
    return form


async def _parse(body: AsyncIterator[bytes], form: ReceivedForm, boundary: bytes) -> None:
    names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "headers_finished")
    try:
        parser = MultipartParser(boundary, {f"on_{name}": getattr(form, f"on_{name}") for name in names})  # type: ignore[arg-type]
        async for chunk in body:
            parser.write(chunk)
            if form.pending >= CHUNK:
                await to_thread.run_sync(form.flush)
        parser.finalize()
    except FormParserError as error:
        raise InvalidParameters(f"the multipart body cannot be read: {error}") from error
    except ClientDisconnect:
        raise RequestTooSlow("the upload broke off") from None  # nobody reads it; it is no fault of ours
    await to_thread.run_sync(form.flush)


def check_signature(head: bytes) -> None:
    """Whether the first bytes are those of a video container that workers read.

    Raises:
        NotAVideo: they are not.
    """
    known = filetype.guess(head)
    if known is not None and known.extension in CONTAINERS:
        return
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime without a brand
        return
    for first, packet in TRANSPORT_STREAMS:
        if head[first : first + 1] == b"\x47" and head[first + packet : first + packet + 1] in (b"\x47", b""):
            return
    if head[:4] in (b"OggS", b"\0\0\1\xba"):  # Ogg, MPEG program stream
        return
    found = known.mime if known is not None else "unknown bytes" if b"\0" in head else "text"
    raise NotAVideo(f"this is not a video file that can be read: it looks like {found}", actual=found)


def params_of(fields: list[tuple[str, str]]) -> SegmentParams:
    """The fields as parameters; a repeated field is a list where the contract has one.

    Raises:
        RequestValidationError: naming every field that is wrong.
        InvalidParameters: a field that is no list is repeated.
    """
    values: dict[str, str | list[str]] = {}
    for name, value in fields:
        if name in LIST_FIELDS:
            entry = values.setdefault(name, [])
            assert isinstance(entry, list)
            entry.append(value)
        elif name in values:
            raise InvalidParameters(f"{name[:64]}: given twice", limit=1, actual=2)
        else:
            values[name] = value
    try:
        return SegmentParams.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def video_name(filename: str) -> str:
    """The client's file name without folders and ending, fit to be a folder's name."""
    stem = PurePath(filename.replace("\\", "/")).stem
    kept = "".join(letter if letter.isalnum() or letter in " ._-" else "_" for letter in stem).strip(" .")
    return kept[:80] or "video"
