"""The Python client and `uvos segment`: arrays, conversions, dropped connections, restarts."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from service import batch
from service.settings import Settings
from tests.service.live import free_port, running_api
from tests.videos import Shape, make_scene, write_video
from uvos import AsyncClient
from uvos.client import Client, ExportFormat, RequestFailed, Result
from uvos.contract import JobView, LevelLinks, SegmentForm, Status
from uvos.edits import Only, Rename, Undo
from uvos.params import SegmentOptions

FRAMES = 6


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = make_scene([Shape("disc", 40, (48, 30), (0, 6))], frames=FRAMES)
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", scene.frames)


@pytest.fixture(scope="module")
def result(service_url: str, video: Path) -> Iterator[Result]:
    states: list[JobView] = []
    with Client(service_url) as client:
        result = client.segment(video, tau=[0.5, 1.0], background="keep", on_change=states.append)
        assert states[-1].status == Status.succeeded
        yield result


def test_masks_equal_the_pngs(result: Result, tmp_path: Path) -> None:
    assert result.taus == [0.5, 1.0]
    assert len(result.times_s) == FRAMES
    masks = result.masks(tau=1.0)
    assert (masks.shape, masks.dtype) == ((FRAMES, 96, 128), np.uint16)
    np.testing.assert_array_equal(result.masks(), result.masks(tau=0.5))
    saved = result.save(tmp_path / "out")
    archive = next(path for path in saved if path.match("levels/1/masks.zip"))
    with zipfile.ZipFile(archive) as pngs:
        for mask, name in zip(masks, pngs.namelist(), strict=True):
            np.testing.assert_array_equal(mask, np.asarray(Image.open(pngs.open(name))))


def test_a_level_that_was_not_requested_is_an_error(result: Result) -> None:
    with pytest.raises(ValueError, match=r"levels \[0.5, 1.0\] of this job, got 7"):
        result.masks(tau=7)


def test_masks_convert_to_supervision_detections(result: Result) -> None:
    detections = result.to_supervision(tau=1.0)
    assert len(detections) == FRAMES
    for detection, mask in zip(detections, result.masks(tau=1.0), strict=True):
        assert detection.mask is not None
        assert detection.tracker_id is not None
        for object_mask, label in zip(detection.mask, detection.tracker_id, strict=True):
            np.testing.assert_array_equal(object_mask, mask == label)
        for (left, top, right, bottom), object_mask in zip(detection.xyxy, detection.mask, strict=True):
            rows, columns = np.nonzero(object_mask)
            assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_pycocotools_reads_the_coco_data_set(result: Result) -> None:
    coco = COCO()
    coco.dataset = result.to_coco(tau=1.0)
    coco.createIndex()
    masks = result.masks(tau=1.0)
    assert len(coco.imgs) == FRAMES
    for annotation in coco.anns.values():
        expected = masks[annotation["image_id"] - 1] == annotation["track_id"]
        np.testing.assert_array_equal(coco.annToMask(annotation), expected)
        assert annotation["area"] == expected.sum()


def test_every_linked_format_can_be_saved(result: Result, tmp_path: Path) -> None:
    formats = get_args(ExportFormat)
    files = {"masks_zip", "rle", "overlay"}
    assert set(formats) - files == set(LevelLinks.model_fields) - files - {"tau", "mask", "objects", "rounds"}
    for format in formats:
        if format == "frames":  # not requested
            with pytest.raises(ValueError, match=f"this job has no {format}"):
                result.export(format, tmp_path / format)
        else:
            assert result.export(format, tmp_path / format, tau=1.0).stat().st_size > 0
    polygons = result.export("cvat", tmp_path / "polygons.xml", tau=1.0, tracks="polygon").read_text()
    assert "<polygon" in polygons
    assert "<mask" not in polygons


def test_bytes_files_and_paths_give_the_same_masks_in_both_clients(
    service_url: str, result: Result, video: Path, tmp_path: Path
) -> None:
    async def run() -> tuple[NDArray[np.uint16], list[str], int]:
        async with AsyncClient(service_url.removeprefix("http://")) as client:
            assert await client.is_ready()
            with video.open("rb") as file:
                file.seek(0)
                from_file = await client.submit(file, tau=1.0, background="keep", tags=["async"])
            await client.wait(await client.submit(video.read_bytes(), name="clip.mp4", tau=1.0, background="keep"))
            ended = client.result(await client.wait(from_file))
            names = [job.video.name async for job in client.jobs(Status.succeeded, tag="async")]
            saved = await ended.save(tmp_path)
            edited = await ended.edit(Only(ids=[1]), Rename(id=1, name="disc"))
            shown = set(np.unique(await ended.masks())) - {0}
            assert shown == {1}
            assert (await ended.to_supervision())[0].data["class_name"].tolist() == ["disc"]
            with pytest.raises(RequestFailed):
                await ended.edit(Undo(), version=edited.version - 1)
            await ended.edit(Undo(), version=edited.version)
            masks = await ended.masks()
            await client.delete(ended.job)
            return masks, names, len(saved)

    masks, names, saved = asyncio.run(run())
    np.testing.assert_array_equal(masks, result.masks(tau=1.0))
    assert (names, saved) == (["clip.mp4"], 3)


def test_the_keyword_arguments_are_the_fields_of_the_form() -> None:
    assert SegmentOptions.__annotations__.keys() == {*SegmentForm.model_fields, "callback_url"}
    with pytest.raises(TypeError, match="there is no parameter tua; the parameters are tau"):
        Client("http://127.0.0.1:9").submit(b"", tua=1)  # type: ignore[call-arg]


def test_rejections_and_failures_raise_their_problem(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(RequestFailed) as refused:
        client.segment(tmp_path / "text.mp4")
    assert refused.value.problem.type == "/problems/not-a-video"
    broken = bytearray(write_video(tmp_path / "a.mp4", make_scene(frames=2).frames).read_bytes())
    broken[40:] = bytes(len(broken) - 40)
    (tmp_path / "broken.mp4").write_bytes(broken)
    with pytest.raises(RequestFailed) as failed:
        client.segment(tmp_path / "broken.mp4")
    assert failed.value.problem.type == "/problems/unreadable-video"


@contextmanager
def dropping_proxy(target: str, drops: list[int]) -> Iterator[str]:
    """A proxy that drops connections: each entry is the number of response bytes before the next drop."""
    host, port = target.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                inner, _ = listener.accept()
            except OSError:
                return
            allowed = drops.pop(0) if drops else None
            outer = socket.create_connection((host, int(port)))
            opened.extend([inner, outer])
            threading.Thread(target=pump, args=(inner, outer, None), daemon=True).start()
            threading.Thread(target=pump, args=(outer, inner, allowed), daemon=True).start()

    def pump(source: socket.socket, sink: socket.socket, allowed: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(2048):
                passed += len(data)
                if allowed is not None and passed > allowed:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for each in (listener, *opened):
            each.close()


def test_dropped_connections_give_one_job_and_the_complete_result(
    service_url: str, client: Client, video: Path, tmp_path: Path
) -> None:
    before = len(list(client.jobs()))
    drops = [9999, 0, 0, 700, 1500, 0, 3000]  # drops two responses to POST, then events, then downloads
    with dropping_proxy(service_url, drops) as url, Client(url) as unstable:
        assert unstable.is_ready()
        result = unstable.segment(video, tau=0.7)
        saved = result.save(tmp_path)
    assert drops == []
    assert len(list(client.jobs())) == before + 1
    direct = client.result(client.job(result.job.id))
    assert all(path.stat().st_size > 0 for path in saved)
    again = tmp_path / "again"
    for path in direct.save(again):
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes()


def test_the_client_waits_for_a_restarting_service(settings: Settings, video: Path) -> None:
    port = free_port()
    with running_api(settings, port) as url, Client(url) as client:
        job = client.submit(video)

    def restart() -> None:
        time.sleep(1)
        with running_api(settings, port) as again:
            httpx.post(f"{again}/jobs/{job.id}/cancel", timeout=20)
            time.sleep(1.5)

    thread = threading.Thread(target=restart)
    thread.start()
    with Client(url) as client:
        assert client.wait(job).status == Status.canceled
    thread.join()


def test_an_absent_service_is_reported_at_once() -> None:
    began = time.monotonic()
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(httpx.ConnectError):
        client.job("1")
    assert time.monotonic() - began < 5


# --- uvos segment


def uvos(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, timeout=200
    )


def test_folders_and_lists_of_videos_are_segmented(service_url: str, video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.mp4").write_bytes(video.read_bytes())
    (folder / "deep" / "one.mov").write_bytes(video.read_bytes())
    (folder / "notes.md").write_text("no video")
    (tmp_path / "bad.mp4").write_text("no video either")
    (tmp_path / "list.txt").write_text("# a comment\nbad.mp4\n\n")
    out = tmp_path / "out"
    done = uvos("segment", str(folder), str(tmp_path / "list.txt"), "--url", service_url, "--out", str(out))
    assert done.returncode == 1  # one of them failed
    assert "Traceback" not in done.stderr
    assert "Not a video" in " ".join(done.stderr.split())
    assert (out / "one" / "manifest.json").is_file()
    assert (out / "one-2" / "manifest.json").is_file()


def test_paths_are_expanded_to_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder at"):
        batch.find_videos([tmp_path / "nothing.mp4"])
    with pytest.raises(ValueError, match="no videos and no frames in"):
        batch.find_videos([tmp_path])
    for name in ("b.mp4", "a.MKV", "c.jpg"):
        (tmp_path / name).touch()
    videos = batch.find_videos([tmp_path, tmp_path / "b.mp4"])
    assert [path.name for path in videos] == ["a.MKV", "b.mp4"]
    assert batch.out_folders(videos, Path("out")) == [Path("out/a"), Path("out/b")]
    assert batch.out_folders(videos[:1], Path("out")) == [Path("out")]
