"""Files crafted to access the network or other files: none opens a socket or another file."""

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.videos import make_scene, write_video
from tests.worker.video.fuzz_decode import fuzz
from uvos.errors import UnreadableVideo, UvosError
from worker.video import decode
from worker.video.decode import DecodedVideo, FrameSize, read_clip
from worker.video.request import DecodeLimits, DecodeRequest

LIMITS = DecodeLimits(timeout_s=20)
ROOT = Path(decode.__file__).parents[2]


def read(path: Path, work: Path) -> DecodedVideo:
    return read_clip(DecodeRequest(path, limits=LIMITS), FrameSize(48, 8), work=work)


class Trap:
    """A server on loopback that counts connections."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(0.05)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.hits = 0
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._count)
        self.thread.start()

    def _count(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self.socket.accept()
            except TimeoutError:
                continue
            self.hits += 1
            connection.close()

    def close(self) -> None:
        self.closing.set()
        self.thread.join()
        self.socket.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    server = Trap()
    yield server
    server.close()


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid video next to the file, which must not be read through it."""
    return write_video(tmp_path_factory.mktemp("bait") / "bait.mp4", make_scene(frames=3).frames)


def playlists(target: str) -> dict[str, bytes]:
    """Every text format in which libav follows references, with a reference to `target`."""
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode(),
        "hls master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            f'mediaPresentationDuration="PT1S"><Period><BaseURL>{target}</BaseURL><AdaptationSet mimeType="video/mp4">'
            f'<Representation id="1" bandwidth="1"><SegmentList><SegmentURL media="{target}"/></SegmentList>'
            "</Representation></AdaptationSet></Period></MPD>"
        ).encode(),
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"
        b"a=rtpmap:96 H264/90000\r\n",
        "rtsp in smil": f'<smil><body><video src="rtsp://{target}"/></body></smil>'.encode(),
        "image pattern": f"{target}%03d.png".encode(),
        "imf": f'<?xml version="1.0"?><CompositionPlaylist><Id>{target}</Id></CompositionPlaylist>'.encode(),
    }


@pytest.mark.parametrize("name", playlists(""))
def test_no_playlist_reaches_a_server_or_a_file(name: str, trap: Trap, bait: Path, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    for target in (f"http://{trap.address}/x.ts", f"file:{bait}"):
        path.write_bytes(playlists(target)[name])
        with pytest.raises(UnreadableVideo):
            read(path, tmp_path)
    assert trap.hits == 0


OPEN_WITH_ALL_PROTOCOLS = """
import os, sys
import av, av.subtitles.codeccontext, av.subtitles.stream
from worker.video import sandbox
file = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2] == "confined":
    sandbox.confine(memory_bytes=2**30, cpu_s=9, file_bytes=0)
av.open("fd:", options={"fd": str(file), "protocol_whitelist": "fd,file,http,tcp", "safe": "0"})
"""


@pytest.mark.parametrize("how", ["free", "confined"])
def test_the_sandbox_blocks_connections_when_every_protocol_is_allowed(how: str, trap: Trap, tmp_path: Path) -> None:
    """Without the sandbox the script reaches the trap: the trap works."""
    path = tmp_path / "upload"
    path.write_bytes(playlists(f"http://{trap.address}/x.ts")["concat"])
    code = [sys.executable, "-c", OPEN_WITH_ALL_PROTOCOLS, str(path), how]
    ended = subprocess.run(code, cwd=ROOT, capture_output=True, timeout=30)
    assert ended.returncode == 1
    assert (trap.hits > 0) == (how == "free")


def alias_record(path: str) -> bytes:
    """A data reference of QuickTime to another file: a classic Mac alias."""
    name = path.rpartition("/")[2].encode()
    head = b"\0" * 10 + bytes([4]) + b"disk".ljust(27, b"\0") + b"\0" * 12
    head += bytes([len(name)]) + name.ljust(63, b"\0") + b"\0" * 16 + struct.pack(">hh", 1, 1) + b"\0" * 16
    encoded = path.encode()
    tail = struct.pack(">hh", 2, len(encoded)) + encoded + b"\0" * (len(encoded) % 2) + struct.pack(">hh", -1, 0)
    body = b"alis" + b"\0\0\0\0" + head + tail
    return struct.pack(">I", 4 + len(body)) + body


def with_reference(movie: bytes, entry: bytes) -> bytes:
    """The movie with its first data reference replaced, and the enclosing boxes resized (moov comes last)."""
    at = movie.index(b"dref") + 12
    (old,) = struct.unpack_from(">I", movie, at)
    changed = bytearray(movie[:at] + entry + movie[at + old :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = movie.rindex(box, 0, at + old) - 4
        (length,) = struct.unpack_from(">I", movie, start)
        struct.pack_into(">I", changed, start, length + len(entry) - old)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["alias", "url"])
def test_no_reference_in_a_movie_is_followed(kind: str, trap: Trap, bait: Path, tmp_path: Path) -> None:
    movie = write_video(tmp_path / "movie.mov", make_scene(frames=3).frames).read_bytes()
    for target in (f"http://{trap.address}/x.mov", str(bait), bait.name):
        address = target.encode() + b"\0"
        url = struct.pack(">I", 12 + len(address)) + b"url \0\0\0\0" + address
        path = bait.with_name("upload")
        path.write_bytes(with_reference(movie, alias_record(target) if kind == "alias" else url))
        try:
            decoded = read(path, tmp_path)
        except UvosError:
            continue
        # If it decodes, the samples came from the file itself.
        assert decoded.clip.frames.shape == (3, 48, 64, 3)
    assert trap.hits == 0


def test_mutated_files_decode_or_are_refused_within_the_time_limit(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, count=40, seed=1)
    assert sum(outcomes.values()) == 40
    assert outcomes["Decoded"] > 0
    assert outcomes["UnreadableVideo"] > 0
