"""`make demo`: start the service, segment the sample clip over HTTP, save and summarise the result, stop."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import av
import httpx
import numpy as np
from PIL import Image
from rich.console import Console

from service.batch import describe
from service.rendering.overlay import strip
from uvos import Client
from uvos.contract import JobView, Manifest, Status
from uvos.progress import CommandProgress

SAMPLE = Path(__file__).parent / "sample.mp4"
OUT = Path("out")
START_TIMEOUT_S = 120.0
STRIP_FRAMES = 6
console = Console()


def main() -> int:
    """Run the demo and return the exit status."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uvos-demo-") as data, (OUT / "service.log").open("wb") as log:
        port = free_port()
        service = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", data], stdout=log, stderr=log
        )
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                job = run(client, service)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait()
    if job.error is not None:
        console.print(f"[red]the job failed:[/] {job.error.detail}")
        return 1
    print_summary(time.monotonic() - started_at)
    return 0


def run(client: Client, service: "subprocess.Popen[bytes]") -> JobView:
    """Send the sample and save its result."""
    with CommandProgress(console=console) as progress:
        progress.update("demo", 0.0, 1.0, detail="starting queue, API and worker")
        wait_until_ready(client, service)

        def show(job: JobView) -> None:
            progress.update("demo", job.fraction, 1.0, detail=describe(job))

        job = client.wait(client.submit(SAMPLE, format=["png", "rle", "overlay"]), on_change=show)
        progress.update("demo", 1.0, 1.0, detail=job.status.value)
        if job.status == Status.succeeded:
            for path in client.download_all(job, OUT):
                if path.suffix == ".zip":
                    with zipfile.ZipFile(path) as archive:
                        archive.extractall(path.parent / "masks")
    return job


def wait_until_ready(client: Client, service: "subprocess.Popen[bytes]") -> None:
    """Wait until a worker has loaded its model."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise SystemExit(f"the service did not start; see {OUT / 'service.log'}")
        try:
            if client.is_ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the service was not ready within {START_TIMEOUT_S:g} s; see {OUT / 'service.log'}")


def print_summary(seconds: float) -> None:
    """Draw the strip and print objects, times and output files."""
    manifest = Manifest.model_validate_json((OUT / "manifest.json").read_bytes())
    level = manifest.levels[0]
    folder = OUT / "levels" / level.name
    with av.open(str(SAMPLE)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    chosen = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
    masks = sorted((folder / "masks").rglob("*.png"))
    strip([frames[i] for i in chosen], [np.asarray(Image.open(masks[i])) for i in chosen]).save(OUT / "strip.png")

    console.print(
        f"\n[bold]{manifest.video.frame_count} frames[/] of {manifest.video.width}x{manifest.video.height}, "
        f"[bold]{len(level.objects)} objects[/] at tau {level.name}, with {manifest.model.name} "
        f"(version {manifest.model.version}) on {manifest.device} in {manifest.timings_s['total']:.1f} s; "
        f"the whole demo took {seconds:.0f} s."
    )
    for item in level.objects:
        swatch = f"[on {item.color}]  [/]"
        console.print(
            f"  {swatch} object {item.id}: {item.area:.1%} of the frame, frames {item.first_frame} to {item.last_frame}"
        )
    console.print("\nOutput files:")
    for path, description in (
        (OUT / "strip.png", "frames with coloured masks"),
        (folder / "overlay.mp4", "the video with coloured masks"),
        (folder / "masks", "one palette PNG per frame"),
        (folder / "rle.json", "the same masks as COCO RLE"),
        (OUT / "manifest.json", "parameters, model, objects, timings"),
    ):
        console.print(f"  {path!s:<28} {description}", highlight=False)
    console.print("\nThe service has been stopped. `make up` starts it and keeps it running.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
