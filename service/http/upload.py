"""The multipart body of POST /segment: the video streams to storage, the other fields are few and small."""

from collections.abc import AsyncIterator, Sequence
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

import filetype
from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.http.fetch import fetch
from service.jobs.public_address import Network
from service.storage.folder import Storage
from service.storage.uploads import Upload
from uvos.contract import SegmentForm
from uvos.errors import EmptyUpload, InvalidParameters, NotAVideo, RequestTooSlow, UploadTooLarge

CHUNK = 2**20  # bytes buffered before they are written to disk in a thread
SIGNATURE_BYTES = 8192  # more than the signature of any container
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 64
MAX_STEM, MAX_SUFFIX = 80, 16  # characters of a file name
FETCHES = CapacityLimiter(4)  # videos fetched at the same time, so that slow servers do not occupy all threads
LIST_FIELDS = {"tau", "format", "tags"}
# Containers that workers decode, by the names of `filetype`; `check_signature` recognises the others itself.
CONTAINERS = {"mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "3gp", "wmv", "flv", "ogg", "ogv"}
TRANSPORT_STREAMS = ((0, 188), (4, 192))  # MPEG-TS, M2TS: offset of the first packet, packet length


class ReceivedForm:
    """A received form: the upload on disk, and the fields as text."""

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

    # --- parser callbacks

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
            if b"filename" in options:
                raise InvalidParameters(
                    f"the file is in the field {self._name[:64]!r}: send it as `video` (curl -F video=@FILE)",
                    limit="video",
                    actual=self._name[:64],
                )
            if len(self.fields) >= MAX_FIELDS:
                raise InvalidParameters(
                    f"the form has more than {MAX_FIELDS} fields", limit=MAX_FIELDS, actual=len(self.fields) + 1
                )
            return
        if self.upload is not None:
            raise InvalidParameters("video: must be one file, got two", limit=1, actual=2)
        if b"filename" not in options:
            raise InvalidParameters("video: must be a file, got text")
        self.filename = options[b"filename"].decode("utf-8", "replace")
        self.upload = self.storage.new_upload(self.expected_bytes)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_video:
            self._append(data[start:end])
            return
        length = len(self._value) + end - start
        if length > MAX_FIELD_BYTES:
            detail = f"{self._name[:64]}: the value has more than {MAX_FIELD_BYTES} bytes"
            raise InvalidParameters(detail, limit=MAX_FIELD_BYTES, actual=length)
        self._value += data[start:end]

    def on_part_end(self) -> None:
        if not self._in_video:
            self.fields.append((self._name, self._value.decode("utf-8", "replace")))
        self._in_video = False

    def _append(self, data: bytes) -> None:
        self._seen += len(data)
        if self._seen > self.max_upload_bytes:
            raise UploadTooLarge(
                f"the video has more than {self.max_upload_bytes} bytes",
                limit=self.max_upload_bytes,
                actual=self._seen,
            )
        self._pending += data

    def take_url(self) -> str | None:
        """Remove the field `video_url`; its value.

        Raises:
            InvalidParameters: it is given twice, or beside a file.
        """
        urls = [value for name, value in self.fields if name == "video_url"]
        self.fields = [field for field in self.fields if field[0] != "video_url"]
        if len(urls) + (self.upload is not None) > 1:
            raise InvalidParameters("video_url: must be given once, and not beside `video`", limit=1, actual=len(urls))
        return urls[0] if urls else None

    def fetch(self, url: str, networks: Sequence[Network]) -> None:
        """Fetch the video; blocks. Raises as `service.http.fetch.fetch`, and NotAVideo."""

        def write(data: bytes) -> None:
            self._append(data)
            if self.pending >= CHUNK:
                self.flush()

        self.filename = unquote(urlsplit(url).path)
        self.upload = self.storage.new_upload()
        fetch(url, write, max_bytes=self.max_upload_bytes, networks=networks)
        self.flush()

    def flush(self) -> None:
        """Write the buffered bytes to disk; blocks."""
        if self.upload is None or not self._pending:
            return
        if self.upload.size == 0:
            check_signature(bytes(self._pending[:SIGNATURE_BYTES]))
        self.upload.write(bytes(self._pending))
        self._pending.clear()

    @property
    def pending(self) -> int:
        return len(self._pending)


async def receive(
    request: Request, storage: Storage, *, max_upload_bytes: int, networks: Sequence[Network] = ()
) -> ReceivedForm:
    """Stream a multipart body to storage, or the video that its field `video_url` names.

    On success the caller owns the upload and closes it with `with form.upload:`; on an error it is removed here.

    Raises:
        InvalidParameters: the body is not a valid multipart form, or exceeds the limits of its fields.
        NotAVideo: the file does not begin with the signature of a video container.
        UploadTooLarge: the video exceeds `max_upload_bytes`.
        EmptyUpload: the form has no video, or an empty one.
        StorageFull: the disk is full.
        RequestTooSlow: the client disconnected.
        VideoUrlFailed: the video could not be fetched.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidParameters(
            "the request must be multipart/form-data with the video in the field `video`",
            limit="multipart/form-data",
            actual=media_type.decode("latin-1")[:100] or "nothing",
        )
    length = request.headers.get("content-length", "")
    form = ReceivedForm(
        storage, max_upload_bytes=max_upload_bytes, expected_bytes=int(length) if length.isdecimal() else None
    )
    try:
        await _parse(request.stream(), form, options[b"boundary"])
        url = form.take_url()
        if url is not None:
            await to_thread.run_sync(form.fetch, url, networks, limiter=FETCHES)
        if form.upload is None:
            raise EmptyUpload("the form has neither a file in the field `video` nor a `video_url`")
        if form.upload.size == 0:
            raise EmptyUpload("the video is empty", limit=1, actual=0)
    except BaseException:
        if form.upload is not None:
            with CancelScope(shield=True):  # also if the request was cancelled
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
        raise InvalidParameters(f"the multipart body is malformed: {error}") from error
    except ClientDisconnect:
        raise RequestTooSlow("the client disconnected during the upload") from None
    await to_thread.run_sync(form.flush)


def check_signature(head: bytes) -> None:
    """Check that a file begins with the signature of a container that workers decode.

    Raises:
        NotAVideo: it does not.
    """
    guess = filetype.guess(head)
    if guess is not None and guess.extension in CONTAINERS | {"zip"}:  # an archive of frames
        return
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime without ftyp
        return
    for first, packet in TRANSPORT_STREAMS:
        if head[first : first + 1] == b"\x47" and head[first + packet : first + packet + 1] in (b"\x47", b""):
            return
    if head[:4] in (b"OggS", b"\0\0\1\xba"):  # Ogg, MPEG program stream
        return
    actual = guess.mime if guess is not None else "unknown binary data" if b"\0" in head else "text"
    raise NotAVideo(f"the file is not a video in a supported container, it looks like {actual}", actual=actual)


def parse_fields(fields: list[tuple[str, str]]) -> SegmentForm:
    """Parse form fields; a repeated field becomes a list where the contract has one.

    Raises:
        RequestValidationError: fields are invalid; it lists all of them.
        InvalidParameters: a field that is not a list is repeated.
    """
    values: dict[str, str | list[str]] = {}
    for name, value in fields:
        if name in LIST_FIELDS:
            entry = values.setdefault(name, [])
            assert isinstance(entry, list)
            entry.append(value)
        elif name in values:
            raise InvalidParameters(f"{name[:64]}: must be given once, got two values", limit=1, actual=2)
        else:
            values[name] = value
    try:
        return SegmentForm.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def file_name(filename: str) -> str:
    """The client's file name without folders, sanitised for use as a file name."""
    name = PurePath(filename.replace("\\", "/")).name
    safe = "".join(letter if letter.isalnum() or letter in " ._-" else "_" for letter in name).strip(" .")
    path = PurePath(safe or "video")
    return path.stem[:MAX_STEM] + path.suffix[:MAX_SUFFIX]
