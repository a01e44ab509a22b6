"""Frame sources of the decoder: the best stream of a video file, or a pack of still pictures.

Runs in the sandboxed decoder process (`decoder.py`), so it imports neither numpy nor torch. A source yields frames
in presentation order and refuses frames with more pixels than the limit.
"""

import io
import os
import re
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, Literal, cast

import av
import av.error
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.video.messages import DecodeFailure

# By libav's names: formats written by common cameras, browsers and editors.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv,asf"
DECODERS = [
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "theora", "gif", "mjpeg", "png"),
    *("mpeg4", "msmpeg4v2", "msmpeg4", "mpeg1video", "mpeg2video", "h263", "flv", "wmv1", "wmv2", "wmv3", "vc1"),
    *("prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "qtrle", "rawvideo", "cinepak", "svq3"),
]

# Codecs count pixels of sizes rounded up to their blocks, hence a looser limit for them; `check_pixels` is exact.
PIXEL_SLACK, PIXEL_SLACK_SMALL = 1.1, 2**16
INDEXED_CONTAINERS = ("mov", "matroska")  # formats in which seeking by time is reliable
DEFAULT_FRAME_S = 1 / 25
ONE_FRAME_A_PACKET = ("h264", "hevc", "av1", "vp9")  # a packet without a frame is a lost frame
HIDDEN_FRAMES = ("vp8",)  # packets hold frames that are not shown, so they do not number the frames
MATROSKA_HEAD = 4096  # bytes; contains the EBML header and the length of the segment
DISPLAY_MATRIX = struct.Struct("=5i16x")  # a, b, u, c, d, ... for row vectors: x' = a x + c y, y' = b x + d y
Rotation = Literal[0, 90, 180, 270]
PICTURE_HEADER = struct.Struct("<Q")  # precedes each picture of a pack: its length in bytes
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PICTURE_BYTES = 2**28  # of a file in an archive, unpacked
ENCRYPTED = 1  # flag of an entry
PICTURE_RATE = 24.0  # frames a second of a folder of pictures, which has no times; as in DAVIS


class Refusal(Exception):
    """The input is refused with an error of `uvos/errors.py`."""

    def __init__(self, kind: str, detail: str, *, limit: float | None = None, actual: float | None = None) -> None:
        super().__init__(detail)
        self.message = DecodeFailure(kind=kind, detail=detail, limit=limit, actual=actual)


def check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise Refusal(
            "TooManyPixels",
            f"frames of {width}x{height} have {width * height} pixels; the limit is {limit}",
            limit=limit,
            actual=width * height,
        )


@dataclass(frozen=True)
class Orientation:
    """Transformation from stored pixels to pixels as shown: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def mirrored(self) -> bool:
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def degrees(self) -> Rotation:
        """Rotation clockwise; for a mirrored picture, the rotation before it is mirrored left to right."""
        flip_x = self.flip_x != self.mirrored
        if self.transpose:
            return 90 if flip_x else 270
        return 180 if flip_x else 0

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """The frame's display matrix, rounded to a right angle."""
        side_data = cast(Mapping[str, Any], frame.side_data)  # PyAV's annotation covers motion vectors only
        matrix = side_data.get("DISPLAYMATRIX")
        if matrix is None or matrix.buffer_size < DISPLAY_MATRIX.size:
            return cls()
        a, b, _, c, d = DISPLAY_MATRIX.unpack_from(bytes(matrix))
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(flip_x=a < 0, flip_y=d < 0)
        return cls(transpose=True, flip_x=c < 0, flip_y=b < 0)


class VideoFile:
    """The best video stream of an open file, read through its descriptor only."""

    def __init__(self, file: int, *, max_pixels: int, threads: int) -> None:
        self.file, self.max_pixels, self.threads = file, max_pixels, threads
        self.packets = self.decoded = self.damaged = 0
        self.first_s: float | None = None
        self.last_s: float | None = None
        """Times of the first frame of the video and of the last decoded frame, on the container's clock."""
        self.first_number: int | None = 0
        """Number in the file of the first frame of the latest `frames` or `frames_from`; None if unknown."""
        self.last_is_partial = self.sought = False
        self._open()

    def _open(self) -> None:
        self.container: InputContainer = av.open(
            # Only the descriptor protocol is allowed: no path or address inside the file can be opened.
            "fd:",
            "r",
            options={
                "fd": str(self.file),
                "protocol_whitelist": "fd",
                "format_whitelist": CONTAINERS,
                **self._codec_options(),
            },
            metadata_errors="replace",
        )
        self.stream = self._best_stream()
        for stream in self.container.streams:
            if stream is not self.stream:
                stream.discard = Discard.all
        codec = self.stream.codec_context
        codec.options = self._codec_options()  # the container's options apply to probing, these to decoding
        codec.thread_type = "AUTO"
        codec.thread_count = self.threads

    def _codec_options(self) -> dict[str, str]:
        return {
            "max_pixels": str(int(self.max_pixels * PIXEL_SLACK) + PIXEL_SLACK_SMALL),
            "codec_whitelist": ",".join(DECODERS),
        }

    def _best_stream(self) -> VideoStream:
        """The largest of the default streams, without cover pictures."""
        pictures = Disposition.attached_pic | Disposition.timed_thumbnails
        streams = [stream for stream in self.container.streams.video if not stream.disposition & pictures]
        if not streams:
            raise Refusal("NoVideoStream", "the file has no video stream")
        readable = [s for s in streams if s.codec_context is not None and s.codec_context.name in DECODERS]
        if not readable:
            names = sorted({s.codec_context.name if s.codec_context is not None else "unknown" for s in streams})
            raise Refusal("UnsupportedCodec", f"the video is encoded as {', '.join(names)}, which is not supported")
        return max(readable, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))

    @property
    def codec(self) -> str:
        return self.stream.codec_context.codec.canonical_name

    @property
    def has_one_frame_a_packet(self) -> bool:
        return self.codec in ONE_FRAME_A_PACKET

    @property
    def sample_aspect_ratio(self) -> Fraction:
        ratio = self.stream.sample_aspect_ratio
        return ratio if ratio is not None and ratio > 0 else Fraction(1)

    @property
    def frame_count(self) -> int:
        """By the container's header; 0: unknown."""
        return self.stream.frames

    @property
    def frame_s(self) -> float:
        """Time between frames by the container's header."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate else DEFAULT_FRAME_S

    @property
    def duration_s(self) -> float | None:
        """By the container's header."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return self.container.duration / av.time_base if self.container.duration else None

    def frames(self) -> Iterator[VideoFrame]:
        for packet in self.container.demux(self.stream):
            if packet.size:  # the last packet, without data, flushes the codec
                self.last_is_partial = packet.is_corrupt
                self.packets += not packet.is_discard  # packets outside an edit list are decoded but not shown
            for frame in packet.decode():
                check_pixels(frame.width, frame.height, self.max_pixels)
                self.decoded += 1
                self.damaged += frame.is_corrupt
                if frame.time is not None:
                    self.last_s = frame.time
                    self.first_s = frame.time if self.first_s is None else self.first_s
                yield frame

    def frames_from(self, time_s: float) -> Iterator[VideoFrame]:
        """All frames from `time_s` of the container's clock on, preceded by frames needed to decode them."""
        self.packets = self.decoded = self.damaged = 0
        if self.stream.time_base and any(name in self.container.format.name for name in INDEXED_CONTAINERS):
            times = sorted(self.packet_times())
            try:
                self.container.seek(int(time_s / self.stream.time_base), stream=self.stream)
                frames = self.frames()
                first = next(frames, None)
            except av.error.FFmpegError:
                first = None
            if first is not None and first.time is not None and first.time <= time_s:
                self.sought = True
                self.first_number = None if self.codec in HIDDEN_FRAMES else bisect_left(times, first.time)
                return _prepend(first, frames)
        self._reopen()
        return self.frames()

    def _reopen(self) -> None:
        self.container.close()
        os.lseek(self.file, 0, os.SEEK_SET)
        self.packets = self.decoded = self.damaged = 0
        self._open()

    def packet_times(self) -> Iterator[float]:
        """Presentation times on the container's clock, without decoding, in the order of the file."""
        self._reopen()
        for packet in self.container.demux(self.stream):
            if packet.size and not packet.is_discard and packet.pts is not None and self.stream.time_base:
                yield float(packet.pts * self.stream.time_base)

    def ends_early(self) -> bool:
        """Whether the file is shorter than its own headers state; call it after the last frame.

        libav treats the end of the file as the end of the video, so a truncated upload would be cut silently.
        """
        size = self.container.size
        name = self.container.format.name
        if "mov" in name and any(entry.pos + entry.size > size for entry in self.stream.index_entries):
            return True
        if "matroska" in name and matroska_size(os.pread(self.file, MATROSKA_HEAD, 0)) > size:
            return True
        return self.last_is_partial

    def lost_frames(self) -> int:
        """Number of frames that the codec skipped without an error; call it after the last frame."""
        if self.sought or not self.has_one_frame_a_packet:
            return 0  # after seeking, frames that depend on earlier ones are skipped legitimately
        return max(0, self.packets - self.decoded)

    def has_no_end_mark(self) -> bool:
        """Whether the file may be truncated; players still show such files."""
        return self.container.format.name == "gif" and b";" not in os.pread(self.file, 16, self.container.size - 16)


def matroska_size(head: bytes) -> int:
    """Length in bytes that a Matroska or WebM file states; 0: unknown, as in live recordings.

    A file consists of an EBML header and a segment; each has an identifier of four bytes, a length and that many bytes
    (RFC 8794, section 4). The number of leading zeros of a length gives its bytes; all ones: unknown.
    """
    position = 0
    for identifier in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[position : position + 4] != identifier or position + 4 >= len(head):
            return 0
        bytes_used = 9 - head[position + 4].bit_length()
        bits = 7 * bytes_used
        length = int.from_bytes(head[position + 4 : position + 4 + bytes_used]) & ((1 << bits) - 1)
        if bytes_used > 8 or length == (1 << bits) - 1:
            return 0
        position += 4 + bytes_used + length
    return position


class PicturePack:
    """JPEG and PNG pictures, concatenated in an open file (`PICTURE_HEADER`), shown at `PICTURE_RATE`.

    Decoded by Pillow: its JPEG decoder produces the same pixels as OpenCV's, libav's does not.
    """

    codec = "pictures"
    sample_aspect_ratio = Fraction(1)
    has_one_frame_a_packet = True
    decoded = damaged = 0
    first_number = 0
    first_s, last_s = 0.0, 0.0

    def __init__(self, file: int, *, count: int, max_pixels: int) -> None:
        self.file: BinaryIO = os.fdopen(file, "rb", closefd=False)
        self.max_pixels, self.frame_s = max_pixels, 1 / PICTURE_RATE
        self._set_count(count)

    def _set_count(self, count: int) -> None:
        self.frame_count = count
        self.duration_s: float | None = count / PICTURE_RATE

    @staticmethod
    def prepare() -> None:
        """Load Pillow's lazily imported plugins while files can still be opened."""
        from PIL import Image

        Image.preinit()
        zlib.decompressobj()
        "".encode("cp437")  # the encoding of names in archives
        Image.MAX_IMAGE_PIXELS = None  # `check_pixels` enforces the limit

    def frames(self) -> Iterator[VideoFrame]:
        from PIL import Image

        self.decoded = 0
        for data in self._pictures():
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                check_pixels(*picture.size, self.max_pixels)
                frame = VideoFrame.from_image(picture.convert("RGB"))  # type: ignore[no-untyped-call]
            frame.time_base = Fraction(self.frame_s).limit_denominator(1_000_000)
            frame.pts = self.decoded
            self.decoded += 1
            self.last_s = (self.decoded - 1) * self.frame_s
            yield frame

    def _pictures(self) -> Iterator[bytes]:
        """The files, in order."""
        self.file.seek(0)
        while header := self.file.read(PICTURE_HEADER.size):
            (length,) = PICTURE_HEADER.unpack(header)
            yield self.file.read(length)

    def frames_from(self, time_s: float) -> Iterator[VideoFrame]:  # noqa: ARG002 - always from the first picture
        return self.frames()

    def packet_times(self) -> Iterator[float]:
        return (i * self.frame_s for i in range(self.frame_count))

    def ends_early(self) -> bool:
        return False

    def lost_frames(self) -> int:
        return 0

    def has_no_end_mark(self) -> bool:
        return False


class PictureArchive(PicturePack):
    """JPEG and PNG pictures in a ZIP archive, in the natural order of their names, shown at `PICTURE_RATE`.

    Entries are read one at a time and never written to disk, so their paths are names only.
    """

    def __init__(self, file: int, *, max_pixels: int) -> None:
        super().__init__(file, count=0, max_pixels=max_pixels)
        self.archive = zipfile.ZipFile(self.file)
        entries = [entry for entry in self.archive.infolist() if _is_picture(entry.filename)]
        folders = sorted({entry.filename.rpartition("/")[0] for entry in entries})
        if not entries:
            raise Refusal("NoFrames", f"the archive contains no {' or '.join(PICTURE_SUFFIXES)} file")
        if len(folders) > 1:
            names = ", ".join(name or "the top folder" for name in folders[:3])
            raise Refusal("UnreadableVideo", f"the archive has pictures in several folders ({names}): put one in it")
        self.entries = sorted(entries, key=lambda entry: natural_order(entry.filename))
        self._set_count(len(entries))

    def _pictures(self) -> Iterator[bytes]:
        for entry in self.entries:
            name = entry.filename[-100:]
            if entry.flag_bits & ENCRYPTED:
                raise Refusal("UnreadableVideo", f"{name} in the archive is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refusal("UnreadableVideo", f"{name} in the archive is compressed by a method other than deflate")
            with self.archive.open(entry) as picture:
                data = picture.read(MAX_PICTURE_BYTES + 1)  # the size that the archive states may be wrong
            if len(data) > MAX_PICTURE_BYTES:
                raise Refusal("UnreadableVideo", f"{name} in the archive has more than {MAX_PICTURE_BYTES} bytes")
            yield data


def _is_picture(path: str) -> bool:
    """Whether an entry is a picture, and not metadata of an operating system."""
    *folders, name = path.split("/")
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".") and "__MACOSX" not in folders


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key with which "frame2" comes before "frame10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"([0-9]+)", name)]


def _prepend(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest
