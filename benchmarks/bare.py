"""The API against a bare one: FastAPI, Redis and the same response model, without everything else.

Both run in processes of their own on the same machine and are measured in turns: `wrk` (Debian package) for
GET /jobs/<id>, one client for POST /segment with 5 MB, of which the bare one also computes the SHA-256 and which it
also syncs to disk. Every figure is the median of three rounds.
"""

import hashlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile

from service.supervisor import listen
from tests.chaos.fleet import Fleet
from tests.chaos.stub_child import stub_video
from uvos.contract import JobView

ROUNDS = 3
CONNECTIONS = (1, 16, 64)
WRK_S = 3
UPLOAD_BYTES = 5_000_000
UPLOADS = 12
CHUNK = 2**20


def bare_app(redis_url: str, folder: Path) -> FastAPI:
    """An API that stores one response per job in Redis."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, redis.asyncio.Redis]]:
        client = redis.asyncio.Redis.from_url(redis_url)
        yield {"redis": client}
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/jobs/{job_id}", response_model_exclude_none=True)
    async def show(job_id: str, request: Request) -> JobView:
        text = await request.state.redis.get(f"bare:{job_id}")
        if text is None:
            raise HTTPException(404)
        return JobView.model_validate_json(text)

    @app.post("/segment", status_code=202, response_model_exclude_none=True)
    def segment(video: UploadFile, tau: Annotated[float, Form()]) -> JobView:
        digest, path = hashlib.sha256(), folder / f"{time.time_ns()}-{tau}"
        with path.open("wb") as file:
            while chunk := video.file.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        with redis.Redis.from_url(redis_url) as client:
            client.rpush("bare:queue", digest.hexdigest())
            text = client.get("bare:template")
        return JobView.model_validate_json(text)

    return app


def serve(redis_url: str, folder: Path, port: int) -> None:
    with listen("127.0.0.1", port) as listener:
        config = uvicorn.Config(bare_app(redis_url, folder), http="h11", log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def running(fleet: Fleet) -> Iterator[int]:
    """The port of the bare API, on the queue of the fleet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    folder = fleet.folder / "bare"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare", fleet.queue.url, str(folder), str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/jobs/none")
                break
            except httpx.ConnectError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def compare(fleet: Fleet) -> Iterator[tuple[str, float, float, float]]:
    """Yield name, milliseconds here, milliseconds of the bare API, and the limit of their ratio."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: install the Debian package wrk")
    ended = fleet.submit(stub_video(0.1))
    fleet.wait_for_end(ended)
    waiting = fleet.submit(stub_video(600))
    fleet.wait_for_status(waiting, "running")
    for job_id in (ended, waiting):
        text = fleet.http.get(f"/jobs/{job_id}").text
        fleet.redis.set(f"bare:{job_id}", text)
        fleet.redis.set("bare:template", text)
    with running(fleet) as port:
        for job_id, name in ((ended, "ended"), (waiting, "running")):
            for connections in CONNECTIONS:
                pairs = [
                    (latency_ms(fleet.port, job_id, connections), latency_ms(port, job_id, connections))
                    for _ in range(ROUNDS)
                ]
                ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
                yield f"GET /jobs/<id>, {name} job, {connections} connections, p50", ours, bare, 1.5
        fleet.http.delete(f"/jobs/{waiting}")
        pairs = [(upload_ms(fleet.port), upload_ms(port)) for _ in range(ROUNDS)]
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        yield f"POST /segment with {UPLOAD_BYTES // 10**6} MB", ours, bare, 1.2


def latency_ms(port: int, job_id: str, connections: int) -> float:
    """The median latency of GET /jobs/<id>."""
    url = f"http://127.0.0.1:{port}/jobs/{job_id}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{WRK_S}s", "--latency", url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    match = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", output)
    assert match is not None, output
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def upload_ms(port: int) -> float:
    """The median time of an upload."""
    video = stub_video(0.0)
    video += b" " * (UPLOAD_BYTES - len(video))
    times = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        for _ in range(UPLOADS):
            began = time.perf_counter()
            http.post("/segment", files={"video": ("clip.mp4", video)}, data={"tau": "1"}).raise_for_status()
            times.append(1000 * (time.perf_counter() - began))
            time.sleep(0.2)  # the worker has removed the upload
    return statistics.median(times)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
