"""`uvos`: start the service, use it from the command line. The client's commands talk HTTP only."""

import base64
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvicorn
from pydantic import SecretStr
from rich.console import Console

from service import batch
from service.http.api_keys import add_key
from service.jobs.embedded import EmbeddedServer
from service.jobs.webhooks import secret_of
from service.settings import Settings
from uvos.client import Client, RequestFailed
from uvos.contract import Background, Clustering, Edges, Format, Mode, Motion, Status
from uvos.errors import UvosError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Any video to object masks, with no labels and no clicks: start the service, or send it a video.",
)
keys = typer.Typer(no_args_is_help=True, help="API keys of the service.")
app.add_typer(keys, name="keys")
console = Console(stderr=True)

DEFAULT_URL = "http://127.0.0.1:8000"
STOP_TIMEOUT_S = 30.0
RESTART_PAUSE_S = 1.0

UrlOption = Annotated[str, typer.Option(help="Where the service is.", envvar="UVOS_URL")]
KeyOption = Annotated[str | None, typer.Option(help="API key, where the service asks for one.", envvar="UVOS_API_KEY")]


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder for uploads, results and the queue. [default: data]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model for jobs that name none. [default: tiny]")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
) -> None:
    """Start everything: a queue of its own unless UVOS_REDIS_URL is set, the API, and workers."""
    given = {"host": host, "port": port, "data_dir": data, "default_model": model}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with ExitStack() as running:
        if settings.redis_url is None:
            queue = running.enter_context(EmbeddedServer(settings.data_dir / "queue"))
            settings = settings.model_copy(update={"redis_url": SecretStr(queue.url)})
        running.enter_context(_workers(settings, workers))
        url = f"http://{settings.host}:{settings.port}"
        console.print(f"[bold]uvos[/] is on [link={url}]{url}[/link], data in {settings.data_dir}. Try next:\n")
        console.print(f"  uvos segment examples/sample.mp4 --url {url} --out masks/", highlight=False)
        console.print(f"  curl -F video=@examples/sample.mp4 {url}/segment", highlight=False)
        console.print(f"  open {url}/docs\n", highlight=False)
        _serve(settings)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")] = None,
) -> None:
    """Start the API alone; UVOS_REDIS_URL names the queue that workers share."""
    given = {"host": host, "port": port}
    _serve(Settings(**{name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]


@app.command()
def segment(
    videos: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or .txt files that list them.")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    tau: Annotated[list[float] | None, typer.Option(help="Merge threshold in nats; repeat for several levels.")] = None,
    key_ratio: Annotated[
        float | None, typer.Option(help="Share of the frames that serve as keys. [default: 0.1]")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="Several objects, or the one main object.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from /models.")] = None,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="Repeat for several. [default: png, rle]")
    ] = None,
    start: Annotated[float | None, typer.Option(help="First second of the part to segment.")] = None,
    end: Annotated[float | None, typer.Option(help="Last second of the part, exclusive.")] = None,
    fps: Annotated[float | None, typer.Option(help="At most this many frames a second.")] = None,
    resolution: Annotated[str | None, typer.Option(help="HxW at which the model looks.")] = None,
    clustering: Annotated[Clustering | None, typer.Option(help="The paper's procedure or its code's.")] = None,
    background: Annotated[Background | None, typer.Option(help="Tell background apart, or keep it.")] = None,
    edges: Annotated[Edges | None, typer.Option(help="Smooth outlines, or patches as published.")] = None,
    min_area: Annotated[float | None, typer.Option(help="Smallest object, as a share of the frame.")] = None,
    motion: Annotated[Motion | None, typer.Option(help="Join motion to the features.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are saved.")] = Path("masks"),
) -> None:
    """Send videos, wait with a progress bar each, save their masks."""
    params = {
        "tau": tau,
        "key_ratio": key_ratio,
        "mode": mode,
        "model": model,
        "format": formats,
        "start": start,
        "end": end,
        "fps": fps,
        "resolution": resolution,
        "clustering": clustering,
        "background": background,
        "edges": edges,
        "min_area": min_area,
        "motion": motion,
    }
    found = batch.find_videos(videos)
    with Client(url, api_key=key) as client:
        try:
            outcomes = batch.run(client, found, out, params, console)
        except KeyboardInterrupt:
            console.print("stopped; what had not ended is canceled")
            raise typer.Exit(130) from None
    (first, *more) = outcomes
    if not more:
        if first.problem is not None:
            raise RequestFailed(first.problem)
        assert first.job is not None
        console.print(f"{first.job.id}: {first.job.frames_total} frames, {first.files} files are in {out}")
        return
    console.print(batch.table(outcomes))
    if any(each.problem is not None for each in outcomes):
        raise typer.Exit(1)


@app.command()
def jobs(
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    status: Annotated[Status | None, typer.Option(help="Only jobs with this status.")] = None,
) -> None:
    """List one's jobs, newest first."""
    with Client(url, api_key=key) as client:
        for job in client.jobs(status):
            console.print(f"{job.id}  {job.status.value:<9}  {job.created_at:%Y-%m-%d %H:%M}  {job.video.name}")


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Whose key it is: jobs are seen by keys of their own name only.")],
    data: Annotated[Path | None, typer.Option(help="The service's data folder. [default: data]")] = None,
) -> None:
    """Make an API key; it is told once, the service keeps its hash."""
    settings = Settings() if data is None else Settings(data_dir=data)
    print(add_key(settings.keys_file, name))
    console.print(f"its hash is in {settings.keys_file}; a service that asks for keys knows it at once")


@keys.command("webhook")
def webhook_secret(
    name: Annotated[str, typer.Argument(help="Whose webhooks it signs; empty where no keys are asked for.")] = "",
) -> None:
    """Tell the secret by which a caller checks the webhooks it gets."""
    secret = Settings().webhook_secret
    if secret is None:
        raise ValueError("set UVOS_WEBHOOK_SECRET as the service has it")
    print("whsec_" + base64.b64encode(secret_of(secret.get_secret_value(), name or None)).decode())


def _serve(settings: Settings) -> None:
    """Run the API until it is told to stop."""
    from service.app import create_app
    from service.http.timeouts import DeadlineProtocol

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection each
    logging.basicConfig(level=logging.INFO, format="%(asctime)s api[%(process)d] %(message)s")
    api = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            api,
            host=settings.host,
            port=settings.port,
            http=DeadlineProtocol,  # on h11, which cuts off endless headers; httptools takes 200 MiB of them
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )
    api.state.is_stopping = lambda: server.should_exit  # lets go of those who wait for events
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)


@contextmanager
def _workers(settings: Settings, count: int) -> Iterator[None]:
    """Worker processes beside the API; one that dies is replaced, and all end with this process, however it does."""
    assert settings.redis_url is not None
    environment = os.environ | {
        "UVOS_REDIS_URL": settings.redis_url.get_secret_value(),
        "UVOS_DATA_DIR": str(settings.data_dir.resolve()),
        "UVOS_DEFAULT_MODEL": settings.default_model,
    }
    stopping = threading.Event()

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "worker.cli", "run", "--attached"]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0)

    processes = [start() for _ in range(count)]

    def watch() -> None:
        while not stopping.wait(RESTART_PAUSE_S):
            for index, process in enumerate(processes):
                if process.poll() is not None and not stopping.is_set():
                    console.print(f"[yellow]a worker ended with status {process.returncode}; starting another[/]")
                    processes[index] = start()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopping.set()
        watcher.join()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """The command line: an expected failure is one sentence and exit status 1."""
    try:
        app()
    except (UvosError, RequestFailed) as error:
        detail = error.problem.detail if isinstance(error, RequestFailed) else error.detail
        remedy = f" {error.remedy}" if isinstance(error, UvosError) and error.remedy else ""
        console.print(f"[red]error:[/] {re.sub(r'[.]?$', '.', detail)}{remedy}", highlight=False)
        sys.exit(1)
    except httpx.ConnectError as error:
        console.print(f"[red]error:[/] no service answers at {error.request.url}: start one with `uvos up`.")
        sys.exit(1)
    except httpx.HTTPError as error:
        console.print(f"[red]error:[/] the connection to the service broke off: {error}.", highlight=False)
        sys.exit(1)
    except (OSError, RuntimeError, ValueError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
