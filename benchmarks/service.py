"""Latency of the service: its first response, a job query, the sample clip from POST to succeeded.

python -m benchmarks.service
"""

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from uvos.client import Client
from uvos.contract import Status

SAMPLE = Path(__file__).parents[1] / "examples" / "sample.mp4"
PORT = 8099
QUERIES = 500
RUNS = 3


def main() -> None:
    """Start the service, measure, print a table, stop it."""
    url = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory() as data, (Path(data) / "log").open("wb") as log:
        start = time.perf_counter()
        service = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", str(PORT), "--data", data], stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url=url) as http, Client(url) as client:
                first = until(lambda: http.get("/livez").status_code == 200, start)
                warm = until(client.is_ready, start)
                jobs = []
                for _ in range(RUNS):
                    sent = time.perf_counter()
                    job = client.wait(client.submit(SAMPLE))
                    jobs.append(time.perf_counter() - sent)
                    assert job.status == Status.succeeded, job.error
                queries_ms = []
                for _ in range(QUERIES):
                    sent = time.perf_counter()
                    http.get(job.links.self).raise_for_status()
                    queries_ms.append(1000 * (time.perf_counter() - sent))
        finally:
            service.send_signal(signal.SIGINT)
            service.wait()
    queries_ms.sort()
    print(f"first response of the API         {first:6.2f} s after start")
    print(f"worker warm                       {warm:6.2f} s after start")
    print(
        f"GET /jobs/<id>             p50    {statistics.median(queries_ms):6.2f} ms, "
        f"p99 {queries_ms[int(0.99 * QUERIES)]:.2f} ms"
    )
    print(f"sample clip, POST to end   median {statistics.median(jobs):6.2f} s (48 frames of 854x480, tiny, warm)")


def until(check, start: float) -> float:  # type: ignore[no-untyped-def]
    """Seconds from `start` until `check` holds."""
    while time.perf_counter() - start < 120:
        try:
            if check():
                return time.perf_counter() - start
        except httpx.HTTPError:
            pass
        time.sleep(0.01)
    raise SystemExit("the service did not start")


if __name__ == "__main__":
    main()
