"""Scenarios: each does something to a fleet and returns a report, or raises AssertionError."""
# ruff: noqa: B023  # the lambdas of a loop are called within the same iteration

import contextlib
import os
import pickle
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx

from tests.chaos.fleet import Fleet
from tests.chaos.stub_child import SIGNATURE, stub_video
from tests.chaos.stub_worker import FILL, STEPS
from uvos.contract import QUEUE, TASK, Status

Report = dict[str, float | int | str]
LONG_S = 180.0  # for a real child on a shared machine


def storm(fleet: Fleet, *, jobs: int, kill_every_s: float, queue_kills: int, job_s: float, seed: int = 1) -> Report:
    """Submit jobs while workers, children, the API and Redis are killed: none is lost, none is published twice."""
    rng = random.Random(seed)
    accepted: dict[str, str] = {}  # Idempotency-Key -> job
    first_seen: dict[str, tuple[int, bytes]] = {}  # job -> inode and content of its end
    kills: Counter[str] = Counter()
    queue_kills_at = [jobs * (index + 1) // (queue_kills + 1) for index in range(queue_kills)]
    began, next_kill = time.monotonic(), time.monotonic() + kill_every_s
    pending = [(uuid4().hex, stub_video(rng.uniform(0, 2 * job_s), seed=rng.random())) for _ in range(jobs)]
    while len(first_seen) < jobs:
        if pending and len(accepted) - len(first_seen) < 40:
            key, video = pending[0]
            with suppress(httpx.HTTPError):  # the API was killed during the request, which is sent again
                response = fleet.post(video, idempotency_key=key)
                assert response.status_code in (202, 503), response.text
                if response.status_code == 202:
                    accepted[key] = response.json()["id"]
                    pending.pop(0)
        for job_id in set(accepted.values()) - first_seen.keys():
            path = fleet.data / "jobs" / job_id / "end.json"
            with suppress(FileNotFoundError):
                first_seen[job_id] = (path.stat().st_ino, path.read_bytes())
        if queue_kills_at and len(first_seen) >= queue_kills_at[0]:
            queue_kills_at.pop(0)
            fleet.kill_queue()
            time.sleep(rng.uniform(0, 1))
            fleet.queue.start()
            kills["redis"] += 1
        if time.monotonic() > next_kill:
            next_kill += kill_every_s
            kills[_kill_random_process(fleet, rng)] += 1
        assert time.monotonic() - began < 120 + jobs * (job_s + 2), f"{jobs - len(first_seen)} jobs do not end"
        time.sleep(0.01)
    took = time.monotonic() - began
    fleet.assert_no_crash()
    assert len(set(accepted.values())) == jobs
    ends = Counter(_end_status(fleet, job_id) for job_id in accepted.values())
    for job_id in accepted.values():
        path = fleet.data / "jobs" / job_id / "end.json"
        assert (path.stat().st_ino, path.read_bytes()) == first_seen[job_id], "an end changed"
        if _end_status(fleet, job_id) == "succeeded":
            fleet.wait_for(lambda: _is_complete(fleet, job_id), f"job {job_id} to be complete")
            fleet.assert_complete(job_id)
    twice = [job_id for job_id, count in fleet.published().items() if count > 1]
    assert not twice
    repeated = sum(len(fleet.executions(job_id)) > 1 for job_id in accepted.values())
    return {
        "jobs": jobs,
        **{f"SIGKILL of {name}": count for name, count in sorted(kills.items())},
        "lost": jobs - sum(ends.values()),
        "published twice": len(twice),
        **ends,
        "run more than once": repeated,
        "seconds": round(took),
    }


def _is_complete(fleet: Fleet, job_id: str) -> bool:
    with suppress(AssertionError, OSError):
        fleet.assert_complete(job_id)
        return True
    return False


def _end_status(fleet: Fleet, job_id: str) -> str:
    end = fleet.end(job_id)
    assert end is not None
    return end.status.value


def _kill_random_process(fleet: Fleet, rng: random.Random) -> str:
    target = rng.choice(["parent", "child", "both", "both", "parent", "API"])
    if target == "API":
        assert fleet.api is not None
        fleet.api.kill()
        fleet.api.wait()
        fleet.start_api()
        return target
    fleet.assert_no_crash()
    worker = rng.choice(fleet.workers)
    child = fleet.child_of(worker) if worker.poll() is None else None
    if target in ("child", "both") and child is not None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    if target in ("parent", "both"):
        worker.kill()
        worker.wait()
        fleet.replace_workers()
    return target


def power_loss(fleet: Fleet, *, times: int, seed: int = 2) -> Report:
    """Kill all processes at the same random moment, truncate the queue's log, restart: accepted jobs end once."""
    rng = random.Random(seed)
    accepted: list[str] = []
    slowest = 0.0
    for _ in range(times):
        fail_at = time.monotonic() + rng.uniform(0, 2)
        while time.monotonic() < fail_at:
            accepted.append(fleet.submit(stub_video(rng.uniform(0, 0.4), seed=rng.random())))
            time.sleep(rng.uniform(0, 0.3))
        fleet.kill_all()
        log = max((fleet.folder / "queue" / "appendonlydir").glob("*.incr.aof"))
        os.truncate(log, rng.randrange(log.stat().st_size + 1))
        fleet.start_all()
        started_at = time.monotonic()
        if accepted and fleet.end(accepted[-1]) is None:
            fleet.wait_for_end(accepted[-1])
            slowest = max(slowest, time.monotonic() - started_at)
    for job_id in accepted:
        assert fleet.wait_for_end(job_id).status == Status.succeeded
        fleet.wait_for(lambda: _is_complete(fleet, job_id), f"job {job_id} to be complete")
    assert not [job_id for job_id, count in fleet.published().items() if count > 1]
    return {
        "power failures": times,
        "jobs": len(accepted),
        "lost": 0,
        "slowest end after restart, s": round(slowest, 1),
    }


def kill_at_each_step(fleet: Fleet) -> Report:
    """Kill a worker at each step of a job: the job ends once, and another worker soon begins it again."""
    slowest = 0.0
    for step in STEPS:
        fleet.assert_no_crash()
        fleet.wait_for(lambda: _is_idle(fleet), "idle workers")  # so that only the next job triggers the order
        fleet.order(step, "KILL")
        job_id = fleet.submit(stub_video(0.3))
        fleet.wait_for(lambda: any(worker.poll() is not None for worker in fleet.workers), f"a death at {step}")
        died_at = time.monotonic()
        begun = _begun(fleet, job_id) if step not in ("popped", "leased") else 0
        if step not in ("decided", "released"):
            fleet.wait_for(lambda: _begun(fleet, job_id) > begun, f"another execution after {step}")
            slowest = max(slowest, time.monotonic() - died_at)
        end = fleet.wait_for_end(job_id)
        assert end.status == Status.succeeded, end
        fleet.wait_for(lambda: _is_complete(fleet, job_id), f"job {job_id} to be complete")
        fleet.replace_workers()
        fleet.wait_for(lambda: not fleet.storage.open_jobs(), "no open jobs")
    assert not [job_id for job_id, count in fleet.published().items() if count > 1]
    return {"steps": len(STEPS), "lost": 0, "published twice": 0, "slowest restart, s": round(slowest, 1)}


def _begun(fleet: Fleet, job_id: str) -> int:
    with suppress(FileNotFoundError):
        return len(fleet.executions(job_id))
    return 0


def stalls(fleet: Fleet, *, count: int) -> Report:
    """A worker that is suspended beyond its lease and resumed publishes nothing."""
    steps = ("running", "publishing", "claimed")
    stale = 0
    for index in range(count):
        fleet.order(steps[index % len(steps)], "STOP")
        job_id = fleet.submit(stub_video(0.3))
        fleet.wait_for(lambda: any(_is_stopped(worker.pid) for worker in fleet.workers), "a suspended worker")
        fleet.wait_for(lambda: len(fleet.executions(job_id)) == 2, "another execution")
        suspended = [worker for worker in fleet.workers if _is_stopped(worker.pid)]
        if index % 2:  # resumed after the other execution has ended instead of during it
            fleet.wait_for_end(job_id)
        for worker in suspended:
            worker.send_signal(signal.SIGCONT)
        end = fleet.wait_for_end(job_id)
        stale += end.execution != fleet.executions(job_id)[1]
        fleet.wait_for(lambda: _is_complete(fleet, job_id), f"job {job_id} to be complete")
        fleet.wait_for(lambda: _is_idle(fleet), "idle workers")
    assert stale == 0
    return {"stalls": count, "stale results": stale}


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def _is_idle(fleet: Fleet) -> bool:
    """Whether all workers are warm and wait for a job.

    A worker that still returns from a superseded execution is not idle: it could obey an order meant for the next job.
    """
    busy = fleet.redis.keys("uvos:lease:*") or fleet.redis.exists(f"rq:queue:{QUEUE}:intermediate", f"rq:queue:{QUEUE}")
    idle = {
        int(pid) for key in fleet.redis.smembers("rq:workers")
        for pid, state in [fleet.redis.hmget(key, "pid", "state")] if state == b"idle"
    }  # fmt: skip
    is_back = all(worker.pid in idle for worker in fleet.workers)
    return not busy and is_back and len(fleet.warm_workers()) >= fleet.wanted


def queue_down(fleet: Fleet, *, seconds: float) -> Report:
    """Kill Redis while workers are idle, during a job, and at its end: no job is lost, no worker exits."""
    pids = [worker.pid for worker in fleet.workers]
    waited = []
    for moment in ("idle", "mid-job", "at the end"):
        job_id = ""
        if moment == "mid-job":
            job_id = fleet.submit(stub_video(seconds + 1))
            fleet.wait_for_status(job_id, "running")
        if moment == "at the end":
            job_id = fleet.submit(stub_video(0.5))
            fleet.wait_for_status(job_id, "running")
        fleet.kill_queue()
        time.sleep(seconds)
        fleet.queue.start()
        back_at = time.monotonic()
        if moment == "idle":
            fleet.wait_for(lambda: fleet.post().status_code == 202, "the API to accept")
            fleet.wait_for(lambda: not fleet.storage.open_jobs(), "the job to end")
        else:
            assert fleet.wait_for_end(job_id).status == Status.succeeded
        waited.append(time.monotonic() - back_at)
    assert [worker.pid for worker in fleet.workers] == pids
    assert all(worker.poll() is None for worker in fleet.workers)
    return {"down, s": seconds, "times": 3, "lost": 0, "workers that died": 0, "slowest end, s": round(max(waited), 1)}


def flushed(fleet: Fleet, *, jobs: int) -> Report:
    """FLUSHALL: every job is restored from storage, in order."""
    ids = [fleet.submit(stub_video(0.2)) for _ in range(jobs)]
    fleet.redis.flushall()
    flushed_at = time.monotonic()
    for job_id in ids:
        assert fleet.wait_for_end(job_id).status == Status.succeeded
    assert not [job_id for job_id, count in fleet.published().items() if count > 1]
    return {"jobs": jobs, "lost": 0, "published twice": 0, "seconds": round(time.monotonic() - flushed_at, 1)}


def poisoned(fleet: Fleet) -> Report:
    """Write access to Redis does not execute code: messages that this service does not write are dropped."""
    marker = fleet.folder / "poisoned"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {marker}",)

    call = f'["os.system", null, ["touch {marker}"], {{}}]'.encode()
    good = f'["{TASK}", null, [], {{"job_id": "../../../etc"}}]'.encode()
    bodies = [pickle.dumps(Bomb()), call, good, b"\x80\x05garbage", b"[]", b"{}", f'["{TASK}", 1, 2, 3]'.encode()]
    for index, data in enumerate(bodies):
        name = f"poison{index}"
        fleet.redis.hset(f"rq:job:{name}", mapping={"data": data, "status": "queued", "origin": QUEUE})
        fleet.redis.rpush(f"rq:queue:{QUEUE}", name)
    fleet.redis.hset("rq:job:poisonmeta", mapping={"data": call, "meta": pickle.dumps(Bomb()), "timeout": "soon"})
    fleet.redis.rpush(f"rq:queue:{QUEUE}", "poisonmeta", "../../etc/passwd", b"\xff\xfe")
    fleet.redis.set("uvos:worker:evil", b"\xff")
    for worker in fleet.redis.smembers("rq:workers"):
        name = worker.decode().rsplit(":", 1)[1]
        fleet.redis.publish(f"rq:pubsub:{name}", '{"command": "shutdown"}')
    pids = [worker.pid for worker in fleet.workers]
    job_id = fleet.submit()
    assert fleet.wait_for_end(job_id).status == Status.succeeded
    assert not marker.exists()
    assert [worker.pid for worker in fleet.workers if worker.poll() is None] == pids
    assert fleet.http.get("/readyz").status_code == 200
    fleet.redis.set(f"uvos:progress:{job_id}", b"\xff")
    return {"messages": len(bodies) + 3, "run": 0, "workers that died": 0}


def poison_file(fleet: Fleet) -> Report:
    """A file that crashes the child fails after three attempts; other jobs succeed."""
    neighbours = [fleet.submit() for _ in range(3)]
    poison = fleet.submit(stub_video(crash=True))
    neighbours += [fleet.submit() for _ in range(3)]
    end = fleet.wait_for_end(poison)
    assert end.status == Status.failed
    assert end.error is not None
    assert end.error.type == "/problems/too-many-attempts"
    assert len(fleet.executions(poison)) == 3
    for job_id in neighbours:
        assert fleet.wait_for_end(job_id).status == Status.succeeded
        assert len(fleet.executions(job_id)) == 1
    return {"attempts": 3, "neighbours untouched": len(neighbours)}


def frozen_queue(fleet: Fleet, *, requests: int = 5) -> Report:
    """Redis accepts connections but does not respond: the API returns 503 within three seconds."""
    job_id = fleet.submit(stub_video(0.0))
    fleet.wait_for_end(job_id)
    os.kill(fleet.queue.pid, signal.SIGSTOP)
    slowest = 0.0
    try:
        for _ in range(requests):
            start = time.monotonic()
            response = fleet.post()
            slowest = max(slowest, time.monotonic() - start)
            assert response.status_code == 503, response.text
            assert int(response.headers["retry-after"]) > 0
        assert fleet.http.get(f"/jobs/{job_id}").json()["status"] == "succeeded"  # does not need Redis
    finally:
        os.kill(fleet.queue.pid, signal.SIGCONT)
    fleet.wait_for(lambda: fleet.post().status_code == 202, "the API to accept again")
    fleet.wait_for(lambda: not fleet.storage.open_jobs(), "all jobs to end")
    assert slowest <= 3
    return {"requests": requests, "slowest 503, s": round(slowest, 2)}


def cancelling(fleet: Fleet, *, times: int) -> Report:
    """Cancel a queued job, a running job and one that hangs; the end of a job never changes."""
    waiting_s, running_s = [], []
    for index in range(times):
        video = stub_video(30) if index % 2 else stub_video(hang=True)
        busy = [fleet.submit(video) for _ in fleet.workers]
        for job_id in busy:
            fleet.wait_for(lambda: _begun(fleet, job_id) == 1, "the execution to begin")
        queued = fleet.submit(stub_video(30))
        start = time.monotonic()
        assert fleet.http.post(f"/jobs/{queued}/cancel").json()["status"] == "canceled"
        waiting_s.append(time.monotonic() - start)
        assert fleet.redis.lpos(f"rq:queue:{QUEUE}", queued) is None
        start = time.monotonic()
        for job_id in busy:
            assert fleet.http.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled"
        fleet.wait_for(lambda: not fleet.redis.keys("uvos:lease:*"), "leases to be released")
        running_s.append(time.monotonic() - start)
        assert all(_end_status(fleet, job_id) == "canceled" for job_id in (*busy, queued))
        assert fleet.http.post(f"/jobs/{queued}/cancel").json()["status"] == "canceled"
    return {"times": times, "queued, s": round(max(waiting_s), 3), "running, s": round(max(running_s), 2)}


def deleting(fleet: Fleet) -> Report:
    """DELETE removes a running job with all its files; none of them comes back."""
    job_id = fleet.submit(stub_video(5))
    fleet.wait_for(lambda: _begun(fleet, job_id) == 1, "the execution to begin")
    assert fleet.http.delete(f"/jobs/{job_id}").status_code == 204
    fleet.wait_for(lambda: not fleet.redis.keys("uvos:lease:*"), "leases to be released")
    assert fleet.http.get(f"/jobs/{job_id}").status_code == 404
    assert job_id not in os.listdir(fleet.data / "jobs") + os.listdir(fleet.data / "open")
    assert not os.listdir(fleet.data / "uploads")
    return {"left": 0}


def stopping(fleet: Fleet) -> Report:
    """SIGTERM: a job ends within the grace period or is handed back to the front of the queue; no attempt counts."""
    worker = fleet.workers[0]
    others = fleet.workers[1:]
    for other in others:
        other.terminate()
        other.wait(30)
    fleet.workers = [worker]
    short = fleet.submit(stub_video(0.3))
    fleet.wait_for(lambda: _begun(fleet, short) == 1, "the execution to begin")
    start = time.monotonic()
    worker.terminate()
    assert worker.wait(30) == 0
    assert fleet.wait_for_end(short).status == Status.succeeded
    long, second = "", ""
    fleet.workers = []
    fleet.wanted = 1
    fleet.replace_workers()
    fleet.wait_for(lambda: len(fleet.warm_workers()) >= 1, "a warm worker")
    long, second = fleet.submit(stub_video(2)), fleet.submit()
    fleet.wait_for(lambda: _begun(fleet, long) == 1, "the execution to begin")
    start = time.monotonic()
    fleet.workers[0].terminate()
    assert fleet.workers[0].wait(30) == 0
    took = time.monotonic() - start
    assert fleet.redis.lrange(f"rq:queue:{QUEUE}", 0, -1) == [long.encode(), second.encode()]
    assert not (fleet.data / "jobs" / long / "crashes").exists()
    fleet.replace_workers()
    for job_id in (long, second):
        assert fleet.wait_for_end(job_id).status == Status.succeeded
    fleet.kill_queue()
    start = time.monotonic()
    fleet.workers[0].terminate()
    fleet.workers[0].wait(30)
    without_redis_s = time.monotonic() - start
    fleet.queue.start()
    return {"stopped within, s": round(took, 1), "without Redis, s": round(without_redis_s, 1), "attempts spent": 0}


def same_key(fleet: Fleet, *, posts: int = 50) -> Report:
    """Concurrent POSTs with one Idempotency-Key create one job, also while it runs and after it has ended."""
    from concurrent.futures import ThreadPoolExecutor

    video, key = stub_video(0.5, seed=uuid4().hex), uuid4().hex
    with ThreadPoolExecutor(posts) as pool:
        answers = list(pool.map(lambda _: fleet.post(video, idempotency_key=key), range(posts)))
    assert {answer.status_code for answer in answers} == {202}
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    job_id = ids.pop()
    fleet.wait_for_end(job_id)
    assert fleet.post(video, idempotency_key=key).json()["id"] == job_id
    assert fleet.post(stub_video(0.7), idempotency_key=key).status_code == 422
    assert len(fleet.executions(job_id)) == 1
    return {"posts": posts, "jobs": 1}


def full_disk(fleet: Fleet) -> Report:
    """No space for an upload or for the output of a job: 507 or failed, and nothing partial is left.

    The fleet's folder is on a small disk.
    """
    ballast = fleet.data / "ballast"

    def fill(leave: int) -> None:
        free = os.statvfs(fleet.data).f_bavail * os.statvfs(fleet.data).f_frsize
        with ballast.open("wb") as file, suppress(OSError):
            for _ in range(max(0, free - leave) >> 16):
                file.write(bytes(1 << 16))
                file.flush()

    def uploads() -> list[str]:
        return os.listdir(fleet.data / "uploads") + os.listdir(fleet.data / "jobs")

    known = set(uploads())
    fill(leave=1 << 20)
    response = fleet.post()
    assert response.status_code == 507, response.text
    assert set(uploads()) == known
    ballast.unlink()

    def long_body() -> bytes:  # of unannounced length
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n' + SIGNATURE
        for _ in range(1 << 12):
            yield bytes(1 << 16)
        yield b"\r\n--x--\r\n"

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # an early response
        response = fleet.http.post(
            "/segment", content=long_body(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert response.status_code == 507, response.text
    fleet.wait_for(lambda: set(uploads()) == known, "the broken upload to be removed")
    work = fleet.submit(stub_video(fill=True))
    end = fleet.wait_for_end(work)
    assert end.error is not None
    assert end.error.type == "/problems/storage-full"
    fleet.wait_for(lambda: os.listdir(fleet.data / "jobs" / work / "work") == [], "its files to be removed")
    after = fleet.submit()
    assert fleet.wait_for_end(after).status == Status.succeeded
    fleet.assert_complete(after)
    return {"upload": 507, "upload without length": 507, "work": "failed", "afterwards": "succeeded"}


def full_disk_at_the_end(fleet: Fleet, *, video: bytes) -> Report:
    """No space at all when a result is published: the job fails, or stays open until there is space; nothing partial.

    The fleet's folder and its queue are on a small disk.
    """
    ballast = fleet.data / "ballast"

    def left(job_id: str) -> list[str]:
        folder = fleet.data / "jobs" / job_id
        return [name for part in ("work", "claims") for name in os.listdir(folder / part) if not name.isdigit()]

    def free_blocks() -> int:
        return os.statvfs(fleet.data).f_bavail

    # removing the result makes enough space to record the failure
    fleet.order("publishing", FILL)
    job_id = fleet.submit(video)
    end = fleet.wait_for_end(job_id, LONG_S)
    assert end.status == Status.failed, end
    assert end.error is not None
    assert end.error.type == "/problems/storage-full"
    assert ballast.exists()
    fleet.wait_for(lambda: left(job_id) == [] and job_id not in fleet.storage.open_jobs(), "its files to be removed")
    assert not fleet.storage.input_path(job_id).exists()
    assert fleet.ends(job_id) == 1
    assert fleet.status(job_id) == "failed"  # readable while the disk is full
    ballast.unlink()
    fleet.wait_for(lambda: _is_idle(fleet), "idle workers")

    # that space is taken at once, so not even the failure can be recorded
    fleet.order("publishing", FILL)
    fleet.order("removed", FILL)
    job_id = fleet.submit(video)
    fleet.wait_for(lambda: f"job {job_id}: storage failed" in fleet.log(), "the disk to be full", LONG_S)
    time.sleep(3)  # meanwhile workers requeue the job repeatedly
    assert free_blocks() == 0
    assert fleet.end(job_id) is None
    assert fleet.storage.open_jobs() == [job_id]
    assert left(job_id) == []
    assert len(fleet.executions(job_id)) == 1
    assert fleet.status(job_id) in ("queued", "running")
    ballast.unlink()
    freed_at = time.monotonic()
    end = fleet.wait_for_end(job_id, LONG_S)
    took = time.monotonic() - freed_at
    assert end.status == Status.succeeded, end
    fleet.wait_for(lambda: left(job_id) == [end.execution], f"job {job_id} to be complete")
    assert (fleet.storage.result_dir(job_id, end) / "manifest.json").is_file()
    assert fleet.ends(job_id) == 1
    assert len(fleet.executions(job_id)) == 2
    fleet.assert_no_crash()
    return {
        "no space for the result": "failed",
        "no space for the failure": f"open, then {end.status.value}",
        "partial": 0,
        "after space was freed, s": round(took, 1),
    }
