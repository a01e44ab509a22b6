"""`uvos`: start the service, and use it from the command line. The client commands only use HTTP."""

import base64
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from service import batch
from service.http.api_keys import add_key
from service.jobs.embedded import EmbeddedServer
from service.jobs.webhooks import secret_of
from service.settings import Settings
from uvos.client import Client, RequestFailed
from uvos.contract import Status
from uvos.errors import UvosError
from uvos.options import parameter_options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Turn any video into object masks, without labels and without clicks: start the service, or send it a video.",
)
keys = typer.Typer(no_args_is_help=True, help="Create API keys and webhook secrets.")
app.add_typer(keys, name="keys")
console = Console(stderr=True)

DEFAULT_URL = "http://127.0.0.1:8000"
STOP_TIMEOUT_S = 30.0
RESTART_PAUSE_S = 1.0

UrlOption = Annotated[str, typer.Option(help="URL of the service.", envvar="UVOS_URL")]
KeyOption = Annotated[str | None, typer.Option(help="API key, if the service requires one.", envvar="UVOS_API_KEY")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")]
DataOption = Annotated[Path | None, typer.Option(help="Folder of uploads, results and queue.", show_default="data")]


@app.command()
def up(
    host: HostOption = None,
    port: PortOption = None,
    data: DataOption = None,
    model: Annotated[str | None, typer.Option(help="Default model of jobs.", show_default="best available")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 1,
) -> None:
    """Start the whole service: API, workers, and a queue unless UVOS_REDIS_URL names one."""
    settings = _settings(host=host, port=port, data_dir=data, model=model)
    with ExitStack() as running:
        if settings.redis_url is None:
            queue = running.enter_context(EmbeddedServer(settings.data_dir / "queue"))
            settings = settings.model_copy(update={"redis_url": SecretStr(queue.url)})
        running.enter_context(_workers(settings, workers))
        url = f"http://{settings.host}:{settings.port}"
        data_dir = escape(str(settings.data_dir))
        console.print(f"[bold]uvos[/] listens on [link={url}]{url}[/link], data folder {data_dir}. Try next:\n")
        console.print(f"  uvos segment examples/sample.mp4 --url {url} --out masks/", highlight=False)
        console.print(f"  curl -F video=@examples/sample.mp4 {url}/segment", highlight=False)
        console.print(f"  open {url}/docs\n", highlight=False)
        _serve(settings)


@app.command()
def serve(host: HostOption = None, port: PortOption = None) -> None:
    """Start the API only; UVOS_REDIS_URL names the queue that it shares with the workers."""
    _serve(_settings(host=host, port=port))


@app.command()
@parameter_options()
def segment(
    videos: Annotated[list[Path], typer.Argument(help="Video files, folders of videos, or .txt files that list them.")],
    given: dict[str, Any],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("masks"),
) -> None:
    """Send videos, show their progress, save their masks."""
    paths = batch.find_videos(videos)
    with Client(url, api_key=key) as client:
        try:
            outcomes = batch.run(client, paths, out, given, console)
        except KeyboardInterrupt:
            console.print("interrupted; the unfinished jobs are canceled")
            raise typer.Exit(130) from None
    (first, *others) = outcomes
    if not others:
        if first.problem is not None:
            raise RequestFailed(first.problem)
        assert first.job is not None
        console.print(f"{first.job.id}: {first.job.frames_total} frames, {first.files} files in {escape(str(out))}")
        return
    batch.print_table(outcomes, console)
    if any(outcome.problem is not None for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def jobs(
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    status: Annotated[Status | None, typer.Option(help="List only jobs with this status.")] = None,
) -> None:
    """List the caller's jobs, newest first."""
    with Client(url, api_key=key) as client:
        for job in client.jobs(status):
            line = f"{job.id}  {job.status.value:<9}  {job.created_at:%Y-%m-%d %H:%M}  {job.video.name}"
            console.print(line, markup=False, soft_wrap=True)


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Owner of the key; an owner sees only their own jobs.")],
    data: DataOption = None,
) -> None:
    """Create an API key and print it; the service stores only its hash."""
    settings = _settings(data_dir=data)
    print(add_key(settings.keys_file, name))
    console.print(f"hash appended to {escape(str(settings.keys_file))}; a running service reloads the file")


@keys.command("webhook")
def webhook_secret(
    name: Annotated[str, typer.Argument(help="Owner whose webhooks it verifies; empty if no keys are required.")] = "",
) -> None:
    """Print the secret with which the receiver verifies webhooks."""
    secret = Settings().webhook_secret
    if secret is None:
        raise ValueError("UVOS_WEBHOOK_SECRET is not set: set it to the value that the service uses")
    print("whsec_" + base64.b64encode(secret_of(secret.get_secret_value(), name or None)).decode())


def _settings(**options: Any) -> Settings:
    """Settings from the environment, with the options that were given."""
    return Settings(**{name: value for name, value in options.items() if value is not None})


def _serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT."""
    from service.app import create_server
    from service.http.timeouts import Timeouts

    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))  # one per connection
    logging.basicConfig(level=logging.INFO, format="%(asctime)s api[%(process)d] %(message)s")
    server = create_server(settings, timeouts=Timeouts())
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)


@contextmanager
def _workers(settings: Settings, count: int) -> Iterator[None]:
    """Worker processes; a dead one is replaced, and all of them stop with this process, however it dies."""
    assert settings.redis_url is not None
    environment = os.environ | {
        "UVOS_REDIS_URL": settings.redis_url.get_secret_value(),
        "UVOS_DATA_DIR": str(settings.data_dir.resolve()),
        "UVOS_MODEL": settings.default_model,
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
                    console.print(f"[yellow]a worker exited with status {process.returncode}; starting a new one[/]")
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
    """Run the command line; an expected failure prints one sentence and exits with status 1."""
    try:
        app()
    except UvosError as error:
        message = error.sentence
    except RequestFailed as error:
        message = error.problem.detail
    except httpx.ConnectError as error:
        message = f"cannot connect to {error.request.url}: start the service with `uvos up`, or check --url."
    except httpx.HTTPError as error:
        message = f"the connection to the service failed: {error}."
    except (OSError, RuntimeError, ValueError) as error:
        message = str(error)
    else:
        return
    console.print(f"[red]error:[/] {escape(message)}", highlight=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
