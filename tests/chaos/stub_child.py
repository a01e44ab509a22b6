"""A child process without torch: the uploaded file says how long the work takes and how it fails."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from service.settings import Settings
from service.storage.durable import storage_full_errors
from service.storage.folder import Storage
from uvos.contract import Clustering, JobProgress, JobTiming, Motion, Stage, Workload
from uvos.errors import StorageFull
from worker.jobs.child_process import Send, serve_worker
from worker.jobs.messages import Done, Failed, ProgressUpdate, Ready, Run, Stopped

log = logging.getLogger(__name__)

SIGNATURE = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
STEP_S = 0.05
TIMING = JobTiming(
    model="stub",
    device="stub",
    clustering=Clustering.algorithm1,
    motion=Motion.off,
    video_bytes=1,
    work=Workload(frames=1, tokens=1, key_tokens=1, pixels=1, levels=1),
    seconds={},
)


def stub_video(seconds: float = 0.1, **orders: Any) -> bytes:
    """A file with the signature of an MP4 that controls `StubRunner`."""
    return SIGNATURE + json.dumps({"seconds": seconds} | orders).encode()


class StubRunner:
    def __init__(self, settings: Settings, send: Send) -> None:
        self.storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        self.send = send
        self.cancelled: set[str] = set()

    def warm_up(self) -> None: ...

    def ready(self) -> Ready:
        return Ready(device="stub")

    def cancel(self, execution: str) -> None:
        self.cancelled.add(execution)

    def run(self, run: Run) -> None:
        try:
            self._run(run)
        except FileNotFoundError:
            self.send(Stopped(execution=run.execution))  # the job was deleted

    def _run(self, run: Run) -> None:
        orders = json.loads(self.storage.input_path(run.job_id).read_bytes().removeprefix(SIGNATURE))
        out = self.storage.work_dir(run.job_id, run.execution)
        out.mkdir()
        if "log" in orders:
            log.info(orders["log"])
        if orders.get("crash"):
            os.abort()
        if orders.get("hang"):
            time.sleep(1000)  # like native code: reacts to neither cancellation nor deadline
        if orders.get("fill"):
            self._fill(out / "ballast", run.execution)
            return
        steps = max(1, round(orders["seconds"] / STEP_S))
        for step in range(steps):
            if run.execution in self.cancelled:
                self.send(Stopped(execution=run.execution))
                return
            progress = JobProgress(
                execution=run.execution,
                started_at=run.started_at,
                stage=Stage.features,
                frames_done=step,
                frames_total=steps,
            )
            self.send(ProgressUpdate(progress=progress))
            time.sleep(STEP_S)
        folder = out / "levels" / "1"
        folder.mkdir(parents=True)
        (folder / "rle.json").write_text(json.dumps({"execution": run.execution}))
        (out / "manifest.json").write_text("{}")
        self.send(Done(execution=run.execution, timing=TIMING))

    def _fill(self, path: Path, execution: str) -> None:
        """Write until the disk is full."""
        try:
            with storage_full_errors(path.parent), path.open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
        except StorageFull as error:
            self.send(Failed(execution=execution, problem=error.problem()))


if __name__ == "__main__":
    serve_worker(StubRunner)
