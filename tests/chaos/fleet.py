"""A queue, an API and workers as separate processes that can be killed, stopped and restarted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import redis

from service.jobs.embedded import EmbeddedServer
from service.storage.claims import EndClaim, ExecutionClaim
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from uvos.contract import JobEnd

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 60.0  # long, because the machine may be shared
QUICK = {"UVOS_LEASE_S": "1", "UVOS_RECOVERY_INTERVAL_S": "0.5", "UVOS_SHUTDOWN_GRACE_S": "0.5"}


class Fleet:
    """A complete service whose state is in `folder`."""

    def __init__(self, folder: Path, *, workers: int = 2, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.storage = Storage(self.data, result_ttl_s=3600)
        self.queue = EmbeddedServer(folder / "queue")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = os.environ | QUICK | (settings or {})
        self.environment |= {"UVOS_REDIS_URL": self.queue.url, "UVOS_DATA_DIR": str(self.data)}
        self.wanted = workers
        self.workers: list[subprocess.Popen[bytes]] = []
        self.api: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, trust_env=False)
        self.redis = redis.Redis.from_url(self.queue.url, retry=None, socket_timeout=2)

    # --- processes

    def __enter__(self) -> Self:
        self.queue.start()
        self.start_api()
        for _ in range(self.wanted):
            self.start_worker()
        self.wait_for(lambda: len(self.warm_workers()) >= self.wanted, "warm workers", 3 * TIMEOUT_S)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in (*self.workers, self.api):
            if process is not None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        with suppress(ProcessLookupError):
            os.kill(self.queue.pid, signal.SIGCONT)
        self.queue.stop()
        self.http.close()
        self.redis.close()

    def _start(self, module: str, *arguments: str, log: str) -> "subprocess.Popen[bytes]":
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=file,
                stderr=file,
            )

    def start_api(self) -> None:
        self.api = self._start("service.cli", "serve", "--port", str(self.port), log="api.log")
        self.wait_for(self._api_is_alive, "the API")

    def _api_is_alive(self) -> bool:
        with suppress(httpx.HTTPError):
            return self.http.get("/livez").is_success
        return False

    def start_worker(self) -> "subprocess.Popen[bytes]":
        worker = self._start("tests.chaos.stub_worker", log="workers.log")
        self.workers.append(worker)
        return worker

    def warm_workers(self) -> list[dict[str, Any]]:
        with suppress(httpx.HTTPError, KeyError):
            workers: list[dict[str, Any]] = self.http.get("/readyz").json()["workers"]
            return [worker for worker in workers if worker["device"] != "starting"]
        return []

    def replace_workers(self) -> None:
        """Replace dead workers, as `uvos up` and orchestrators do."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < self.wanted:
            self.start_worker()

    def restore(self) -> None:
        """Bring the fleet back to its initial state."""
        for order in self.data.glob("order-*"):
            order.unlink()
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
        self.replace_workers()
        if self.api is None or self.api.poll() is not None:
            self.start_api()
        for job_id in self.storage.open_jobs():
            with suppress(httpx.HTTPError):
                self.http.delete(f"/jobs/{job_id}")
        self.wait_for(lambda: len(self.warm_workers()) >= self.wanted, "warm workers")

    def assert_no_crash(self) -> None:
        """Check that no worker exited by itself."""
        dead = [worker.returncode for worker in self.workers if worker.poll() is not None]
        assert not dead, f"workers exited by themselves: {dead}\n{self.log()[-5000:]}"

    def child_of(self, worker: "subprocess.Popen[bytes]") -> int | None:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def kill_all(self) -> None:
        """Kill every process at the same moment, as a power failure does."""
        processes = [process for process in (*self.workers, self.api) if process is not None]
        children = [self.child_of(worker) for worker in self.workers if worker.poll() is None]
        pids = [self.queue.pid, *(process.pid for process in processes), *(pid for pid in children if pid is not None)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none reacts to the death of another
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        for process in processes:
            process.wait()
        self.queue.stop()

    def start_all(self) -> None:
        self.queue.start()
        self.start_api()
        self.replace_workers()

    def kill_queue(self) -> None:
        os.kill(self.queue.pid, signal.SIGKILL)
        self.queue.stop()

    # --- jobs

    def post(self, video: bytes | None = None, *, idempotency_key: str | None = None) -> httpx.Response:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        files = {"video": ("clip.mp4", stub_video() if video is None else video)}
        return self.http.post("/segment", files=files, data={"tau": "1"}, headers=headers)

    def submit(self, video: bytes | None = None) -> str:
        response = self.post(video)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def end(self, job_id: str) -> JobEnd | None:
        return self.storage.end(job_id)

    def wait_for_end(self, job_id: str, timeout_s: float = TIMEOUT_S) -> JobEnd:
        self.wait_for(lambda: self.storage.end(job_id) is not None, f"job {job_id}", timeout_s)
        end = self.storage.end(job_id)
        assert end is not None
        return end

    def status(self, job_id: str) -> str:
        status: str = self.http.get(f"/jobs/{job_id}").json()["status"]
        return status

    def wait_for_status(self, job_id: str, status: str) -> None:
        self.wait_for(lambda: self.status(job_id) == status, f"job {job_id} to be {status}")

    def order(self, step: str, name: str) -> None:
        """Give an order, such as a signal, to the next worker that reaches this step."""
        (self.data / f"order-{step}").write_text(name)

    def executions(self, job_id: str) -> list[str]:
        """The executions that began, in order."""
        claims = self.storage.claim_log(job_id).entries()
        return [claim.execution for claim in claims if isinstance(claim, ExecutionClaim)]

    def ends(self, job_id: str) -> int:
        """The number of ends in the claim log."""
        return sum(isinstance(claim, EndClaim) for claim in self.storage.claim_log(job_id).entries())

    def published(self) -> Counter[str]:
        """How often workers logged that they ended a job, by job."""
        return Counter(re.findall(r"job (\w+): (?:succeeded|failed|canceled)", self.log()))

    def log(self) -> str:
        path = self.folder / "workers.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def assert_complete(self, job_id: str) -> None:
        """Check that a job has the result of the execution that its end names, and nothing else."""
        end = self.storage.end(job_id)
        assert end is not None
        assert end.execution is not None
        work = self.data / "jobs" / job_id / "work"
        assert os.listdir(work) == [end.execution]
        document = json.loads((self.storage.result_dir(job_id, end) / "levels" / "1" / "rle.json").read_text())
        assert document == {"execution": end.execution}
        assert not self.storage.input_path(job_id).exists()
        assert self.ends(job_id) == 1

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> float:
        """Wait until the condition holds; the seconds that took."""
        start = time.monotonic()
        while not condition():
            waited = time.monotonic() - start
            assert waited < timeout_s, f"waited {waited:.0f} s for {what}\n{self.log()[-3000:]}"
            time.sleep(0.02)
        return time.monotonic() - start
