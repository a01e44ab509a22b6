"""A child without torch: the video itself says how long the work takes and how it goes wrong."""

import json
import os
import time
from pathlib import Path
from typing import Any

from service.settings import Settings
from service.storage.folder import Storage, full_is_an_answer
from uvos.contract import Stage
from worker.jobs.child import Send, work_for_parent

SIGNATURE = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
STEP_S = 0.05


def stub_video(seconds: float = 0.1, **orders: Any) -> bytes:
    """A file that passes for a video at the door and tells `StubRunner` what to do."""
    return SIGNATURE + json.dumps({"seconds": seconds} | orders).encode()


class StubRunner:
    def __init__(self, settings: Settings, send: Send) -> None:
        self.storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        self.send = send
        self.cancelled: set[str] = set()

    def warm_up(self) -> None: ...

    def about(self) -> dict[str, Any]:
        return {"device": "stub"}

    def cancel(self, execution: str) -> None:
        self.cancelled.add(execution)

    def run(self, job_id: str, execution: str) -> None:
        try:
            self._run(job_id, execution)
        except FileNotFoundError:
            self.send({"stopped": execution})  # the job was deleted

    def _run(self, job_id: str, execution: str) -> None:
        orders = json.loads(self.storage.input_path(job_id).read_bytes().removeprefix(SIGNATURE))
        out = self.storage.work_dir(job_id, execution)
        out.mkdir()
        if orders.get("die"):
            os.abort()
        if orders.get("deaf"):
            time.sleep(1000)  # like native code: hears neither cancel nor deadline
        if orders.get("eat"):
            self._eat(out / "eaten", execution)
            return
        steps = max(1, round(orders["seconds"] / STEP_S))
        for step in range(steps):
            if execution in self.cancelled:
                self.send({"stopped": execution})
                return
            progress = {"execution": execution, "stage": Stage.features, "frames_done": step, "frames_total": steps}
            self.send({"progress": progress})
            time.sleep(STEP_S)
        folder = out / "levels" / "1"
        folder.mkdir(parents=True)
        (folder / "rle.json").write_text(json.dumps({"execution": execution}))
        (out / "manifest.json").write_text("{}")
        self.send({"done": execution})

    def _eat(self, path: Path, execution: str) -> None:
        """Write until the disk is full."""
        try:
            with full_is_an_answer(path.parent), path.open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
        except Exception as error:
            self.send({"failed": execution, "problem": error.problem().model_dump()})  # type: ignore[attr-defined]


if __name__ == "__main__":
    work_for_parent(StubRunner)
