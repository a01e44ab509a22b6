"""`uvos up` killed with SIGKILL: no orphan process stays, and the next `uvos up` ends the open jobs."""

import sys
from pathlib import Path

import pytest

from service.storage.claims import EndClaim
from service.storage.folder import Storage
from tests.up import descendants, is_running, running_service, wait_for
from tests.videos import make_scene, write_video
from uvos.contract import Status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

EXIT_TIMEOUT_S = 15.0  # 5 s to hand a job back, on a shared machine


def test_a_killed_service_leaves_no_orphans_and_the_next_one_ends_its_jobs(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=8).frames)
    with running_service(tmp_path) as (process, client):
        jobs = [client.submit(video) for _ in range(3)]
        wait_for(lambda: client.job(jobs[0].id).status != Status.queued, 60)
        processes = descendants(process.pid)
        assert len(processes) >= 4, "the queue, a worker, its child, the API"
        process.kill()
        process.wait()
        took = wait_for(lambda: not any(map(is_running, processes)), EXIT_TIMEOUT_S)
        print(f"{len(processes)} processes exited within {took:.1f} s")
    assert (tmp_path / "open" / jobs[-1].id).exists()
    with running_service(tmp_path) as (_, client):
        for job in jobs:
            assert client.wait(client.job(job.id)).status == Status.succeeded
            claims = Storage(tmp_path, result_ttl_s=60).claim_log(job.id).entries()
            assert sum(isinstance(claim, EndClaim) for claim in claims) == 1
