"""What must not grow with the number of jobs, the place of jobs at a running limit, and the API against a bare one.

python -m benchmarks.fleet

Starts the API and workers whose child sleeps in place of segmenting. Prints each figure with its limit.
"""

import multiprocessing
import resource
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bare import compare
from service.http.api_keys import digest_of
from service.storage.folder import Storage
from tests.chaos.fleet import Fleet
from tests.chaos.stub_child import stub_video
from uvos.contract import JobEnd, JobParams, JobRecord, Motion, Status

FEW, MANY = 100, 10_000
REPEATS = 15
LISTENERS = 1000
QUERIES = 300
LIMITED_JOBS, JOB_S = 10, 1.0
ADA, BOB, EVE = ({"Authorization": f"Bearer uvos_{name}"} for name in ("ada", "bob", "eve"))
ENDS = (Status.succeeded, Status.failed, Status.canceled)


def main() -> None:
    """Run all benchmarks."""
    keys = ",".join(f"{name}:{digest_of(f'uvos_{name}')}" for name in ("ada", "bob", "eve"))
    settings = {"UVOS_API_KEYS": keys, "UVOS_MAX_RUNNING_PER_KEY": "1", "UVOS_LEASE_S": "6"}
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), settings=settings) as fleet:
        running_limit(fleet)
        listeners(fleet)
        lists(fleet)
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), workers=1) as fleet:
        for name, ours_ms, bare_ms, limit in compare(fleet):
            report(f"{name} (bare {bare_ms:.2f} ms)", ours_ms / bare_ms, "x", limit)


def running_limit(fleet: Fleet) -> None:
    """Ten one-second jobs of a key that may run one, then one job of another key; two workers."""
    began = time.monotonic()
    ada = [submit(fleet, ADA) for _ in range(LIMITED_JOBS)]
    bob_began, bob = time.monotonic(), submit(fleet, BOB)
    fleet.wait_for(lambda: fleet.end(bob) is not None, "the other key's job")
    bob_s = time.monotonic() - bob_began
    fleet.wait_for(lambda: all(fleet.end(job_id) for job_id in ada), "ten jobs")
    report(f"{LIMITED_JOBS} jobs of {JOB_S:g} s, running limit 1", time.monotonic() - began, "s", 12)
    report("another key's job meanwhile", bob_s, "s", 2)


def submit(fleet: Fleet, key: dict[str, str]) -> str:
    files = {"video": ("clip.mp4", stub_video(JOB_S))}
    response = fleet.http.post("/segment", files=files, data={"tau": "1"}, headers=key).raise_for_status()
    job_id: str = response.json()["id"]
    return job_id


def listeners(fleet: Fleet) -> None:
    """The latency of other calls while many listeners follow one running job."""
    job_id = fleet.http.post(
        "/segment", files={"video": ("clip.mp4", stub_video(60.0))}, data={"tau": "1"}, headers=ADA
    ).json()["id"]
    ready, started = multiprocessing.Pipe(duplex=False)
    crowd = multiprocessing.get_context("spawn").Process(target=_listen, args=(fleet.port, job_id, started))
    crowd.start()
    assert ready.poll(60), "the listeners did not connect"
    latencies = _query(fleet, job_id)
    crowd.terminate()
    crowd.join()
    fleet.http.delete(f"/jobs/{job_id}", headers=ADA)
    report(f"GET /jobs/<id>, p99 with {LISTENERS} listeners", 1000 * latencies[int(0.99 * QUERIES)], "ms", 250)


def _listen(port: int, job_id: str, started: Connection) -> None:
    """Follow a job on `LISTENERS` connections and discard the events; in a process of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * LISTENERS)), hard))
    head = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ADA['Authorization']}\r\n\r\n"
    poll = selectors.DefaultSelector()
    for _ in range(LISTENERS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        poll.register(connection, selectors.EVENT_READ, connection)
    started.send(True)
    while True:
        for key, _ in poll.select():
            key.data.recv(1 << 16)


def _query(fleet: Fleet, job_id: str) -> list[float]:
    latencies = []
    for _ in range(QUERIES):
        began = time.perf_counter()
        fleet.http.get(f"/jobs/{job_id}", headers=ADA).raise_for_status()
        latencies.append(time.perf_counter() - began)
        time.sleep(0.02)
    return sorted(latencies)


def lists(fleet: Fleet) -> None:
    """The time of each list with few and with many ended jobs of two keys."""
    paths = ("/jobs", *(f"/jobs?status={status}" for status in Status))
    fill(fleet.storage, FEW)
    fleet.redis.flushall()  # the index is rebuilt
    few = {path: timed(lambda path=path: get(fleet, path, ADA)) for path in paths}  # type: ignore[misc]
    few_none = timed(lambda: get(fleet, "/jobs", EVE))
    fill(fleet.storage, MANY - FEW)
    fleet.redis.flushall()
    rebuild = timed(lambda: get(fleet, "/jobs", ADA), repeats=1)
    report(f"first list after Redis lost the index of {MANY} jobs", rebuild, "ms", None)
    for path in paths:
        many = timed(lambda path=path: get(fleet, path, ADA))  # type: ignore[misc]
        report(f"GET {path}, {MANY} jobs ({few[path]:.1f} ms with {FEW})", many, "ms", 3 * few[path])
    none = timed(lambda: get(fleet, "/jobs", EVE))
    report(f"GET /jobs of a key without jobs ({few_none:.1f} ms with {FEW})", none, "ms", 3 * few_none)
    report("GET /metrics", timed(lambda: get(fleet, "/metrics", {})), "ms", 10)


def fill(storage: Storage, count: int) -> None:
    """Store ended jobs of two keys."""
    params = JobParams(tau=[1.0], model="tiny", motion=Motion.off)
    now = datetime.now(UTC)

    def add(number: int) -> None:
        with storage.new_upload() as upload:
            record = JobRecord(
                id=upload.id,
                created_at=now,
                owner=("ada", "bob")[number % 2],
                video_name="a",
                video_bytes=0,
                video_sha256="",
                params=params,
            )
            storage.submit(record, upload, "")
        end = JobEnd(status=ENDS[number % 3], ended_at=now, expires_at=now + timedelta(days=1), execution="e")
        storage.work_dir(record.id, "e").mkdir(parents=True)
        storage.finish(record.id, end)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(count)))


def get(fleet: Fleet, path: str, key: dict[str, str]) -> None:
    fleet.http.get(path, headers=key).raise_for_status()


def timed(call: Callable[[], None], repeats: int = REPEATS) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def report(name: str, value: float, unit: str, limit: float | None) -> None:
    verdict = "" if limit is None else f"  limit {limit:7.1f} {unit}  {'held' if value <= limit else 'EXCEEDED'}"
    print(f"{name:66} {value:8.2f} {unit}{verdict}", flush=True)


if __name__ == "__main__":
    main()
