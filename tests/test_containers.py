"""The API accepts exactly the containers that the decoder reads, and the documentation lists them."""

from pathlib import Path
from typing import Any

import pytest

from service.http.upload import SIGNATURE_BYTES, check_signature
from tests.videos import make_scene, write_video
from uvos.contract import VIDEO_SUFFIXES
from uvos.errors import NotAVideo
from worker.video.decode import FrameSize, read_clip
from worker.video.request import DecodeRequest
from worker.video.sources import CONTAINERS

ROOT = Path(__file__).parents[1]
M2TS = {"container": "mpegts", "container_options": {"mpegts_m2ts_mode": "1"}}
FRAGMENTS = {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}
CASES: list[tuple[str, str, str, dict[str, Any]]] = [  # name in the documentation, file, libav name, encoder options
    ("MP4", "a.mp4", "mp4", {}),
    ("MP4", "fragments.mp4", "mp4", FRAGMENTS),
    ("MP4", "a.m4v", "m4a", {"container": "ipod"}),
    ("MOV", "a.mov", "mov", {}),
    ("3GP", "a.3gp", "3gp", {}),
    ("3GP", "b.3gp", "3g2", {"container": "3g2"}),
    ("MKV", "a.mkv", "matroska", {}),
    ("WebM", "a.webm", "webm", {"codec": "libvpx"}),
    ("AVI", "a.avi", "avi", {"codec": "mpeg4"}),
    ("GIF", "a.gif", "gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ("MPEG-TS", "a.ts", "mpegts", {"container": "mpegts"}),
    ("M2TS", "a.m2ts", "mpegts", M2TS),
    ("M2TS", "a.mts", "mpegts", M2TS),
    ("MPEG-PS", "a.mpg", "mpeg", {"codec": "mpeg1video"}),
    ("MPEG-PS", "a.vob", "mpeg", {"codec": "mpeg2video", "container": "vob"}),
    ("Ogg", "a.ogv", "ogg", {"codec": "libvpx"}),
    ("FLV", "a.flv", "flv", {"codec": "flv"}),
    ("WMV", "a.wmv", "asf", {"codec": "wmv2"}),
]
MJ2 = "mj2"  # read by the demuxer of MP4; libav cannot write it


@pytest.mark.parametrize(("documented", "name", "container", "options"), CASES, ids=[case[1] for case in CASES])
def test_the_api_accepts_what_the_decoder_reads(
    documented: str, name: str, container: str, options: dict[str, Any], tmp_path: Path
) -> None:
    video = write_video(tmp_path / name, make_scene(frames=3, size=(48, 64)).frames, **options)
    check_signature(video.read_bytes()[:SIGNATURE_BYTES])
    decoded = read_clip(DecodeRequest(video), FrameSize(48, 8), work=tmp_path)
    assert len(decoded.clip.frames) == 3
    assert container in CONTAINERS.split(",")
    assert video.suffix in VIDEO_SUFFIXES
    for text in (NotAVideo.remedy, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert documented in text


def test_no_other_container_is_decoded() -> None:
    assert {container for _, _, container, _ in CASES} | {MJ2} == set(CONTAINERS.split(","))


@pytest.mark.parametrize(
    "head",
    [b"\0\0\1\xb3" + bytes(400), b"\x7fELF" + bytes(400), b"%PDF-1.7", b"\x47" + bytes(400), b"RIFF\0\0\0\0WAVE"],
)
def test_what_the_decoder_does_not_read_is_rejected(head: bytes) -> None:
    with pytest.raises(NotAVideo):
        check_signature(head)
