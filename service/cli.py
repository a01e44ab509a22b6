"""`uvos`: start the service, and use it from the command line. The client commands only use HTTP."""

import base64
import os
import resource
import socket
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from service import batch
from service.http.api_keys import add_key, list_keys, revoke_keys
from service.jobs.embedded import EmbeddedServer
from service.jobs.webhooks import secret_of
from service.logs import configure_logging
from service.settings import Settings
from service.supervisor import CANNOT_START, AttachedProcess, CannotStart, Supervisor, exit_with_parent, listen
from uvos.client import Client, ExportFormat, RequestFailed
from uvos.contract import Status
from uvos.errors import UvosError
from uvos.options import in_options, parameter_options, parse_options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Turn any video into object masks, without labels and without clicks: start the service, or send it a video.",
)
jobs = typer.Typer(no_args_is_help=True, help="List, show, cancel, delete and download jobs.")
app.add_typer(jobs, name="jobs")
keys = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys; print webhook secrets.")
app.add_typer(keys, name="keys")
console = Console(stderr=True)

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[str, typer.Option(help="URL of the service.", envvar="UVOS_URL")]
KeyOption = Annotated[str | None, typer.Option(help="API key, if the service requires one.", envvar="UVOS_API_KEY")]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")]
DataOption = Annotated[Path | None, typer.Option(help="Folder of uploads, results and queue.", show_default="data")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Job id.")]


def _print_version(requested: bool) -> None:
    if requested:
        print(f"uvos {version('uvos')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn any video into object masks, without labels and without clicks."""


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
    configure_logging("up", as_json=settings.log_format == "json")
    with listen(settings.host, settings.port) as listener:
        queue = [EmbeddedServer(settings.data_dir / "queue")] if settings.redis_url is None else []
        environment = _environment(settings, redis_url=queue[0].url if queue else None)
        api = [sys.executable, "-m", "service.cli", "serve", "--attached", "--fd", str(listener.fileno())]
        worker = [sys.executable, "-m", "worker.cli", "run", "--attached"]
        supervisor = Supervisor(
            [
                queue,
                [AttachedProcess("worker", worker, environment) for _ in range(workers)],
                [AttachedProcess("API", api, environment, pass_fds=[listener.fileno()])],
            ]
        )
        url = f"http://{settings.host}:{listener.getsockname()[1]}"
        data_dir = escape(str(settings.data_dir))
        console.print(f"[bold]uvos[/] listens on [link={url}]{url}[/link], data folder {data_dir}. Try next:\n")
        console.print(f"  uvos segment examples/sample.mp4 --url {url} --out masks/", highlight=False)
        console.print(f"  curl -F video=@examples/sample.mp4 {url}/segment", highlight=False)
        console.print(f"  open {url}/docs\n", highlight=False)
        try:
            supervisor.run()
        except CannotStart as error:
            if error.is_reported:
                raise typer.Exit(1) from None
            raise


@app.command()
def serve(
    host: HostOption = None,
    port: PortOption = None,
    attached: Annotated[bool, typer.Option("--attached", hidden=True)] = False,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start the API only; UVOS_REDIS_URL names the queue that it shares with the workers."""
    settings = _settings(host=host, port=port)
    with listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd) as listener:
        _serve(settings, listener, attached=attached)


@app.command()
@parameter_options()
def segment(
    videos: Annotated[
        list[Path],
        typer.Argument(help="Video files, folders of videos, folders of frames, or .txt files that list them."),
    ],
    given: dict[str, Any],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("masks"),
) -> None:
    """Send videos, show their progress, save their masks."""
    parse_options(given)
    paths = batch.find_videos(videos)
    batch.check_out(out)
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
        _print_outcome(first)
        return
    batch.print_table(outcomes, console)
    if any(outcome.problem is not None for outcome in outcomes):
        raise typer.Exit(1)


def _print_outcome(outcome: batch.Outcome) -> None:
    """Print what one video became."""
    assert outcome.job is not None
    counts = ", ".join(
        f"{count} object{'s' * (count != 1)} at tau {tau:g}"
        for count, tau in zip(outcome.objects, outcome.job.params.tau, strict=True)
    )
    console.print(
        f"{outcome.job.id}: {outcome.job.frames_total} frames, {counts}, with {outcome.model}; "
        f"{outcome.files} files in {escape(str(outcome.out))}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.overlay is not None:
        console.print(f"overlay: {escape(str(outcome.overlay))}", highlight=False, soft_wrap=True)


@jobs.command("list")
def list_jobs(
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    status: Annotated[Status | None, typer.Option(help="List only jobs with this status.")] = None,
    tag: Annotated[str | None, typer.Option(help="List only jobs with this tag.")] = None,
) -> None:
    """List your jobs, newest first."""
    with Client(url, api_key=key) as client:
        for job in client.jobs(status, tag=tag):
            print(f"{job.id}  {job.status.value:<9}  {job.created_at:%Y-%m-%d %H:%M}  {job.video.name}")


@jobs.command("get")
def get_job(job_id: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Print a job as JSON: status, parameters, error, links."""
    with Client(url, api_key=key) as client:
        print(client.job(job_id).model_dump_json(indent=2, exclude_none=True))


@jobs.command("cancel")
def cancel_job(job_id: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Cancel a queued or running job; no effect on a job that has ended."""
    with Client(url, api_key=key) as client:
        print(client.cancel(client.job(job_id)).status.value)


@jobs.command("rm")
def remove_jobs(
    job_ids: Annotated[list[str], typer.Argument(help="Job ids.")], url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """Delete jobs with their videos and results."""
    with Client(url, api_key=key) as client:
        for job_id in job_ids:
            client.delete(client.job(job_id))


@jobs.command("download")
def download_job(
    job_id: JobArgument,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    format: Annotated[
        str | None, typer.Option(help=f"One format: {', '.join(get_args(ExportFormat))}. Default: all stored files.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Level of the format. Default: the first.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the format, such as tracks=polygon, object=1, original=true.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File of the format, or folder of all files.")] = None,
) -> None:
    """Save the result of a job, with the edits of its objects."""
    options = _format_options(format, option or [])
    with Client(url, api_key=key) as client:
        result = client.result(client.job(job_id))
        if format is None:
            folder = out or Path("masks")
            batch.check_out(folder)
            for path in result.save(folder):
                print(path)
            return
        name = cast(ExportFormat, format.replace("-", "_"))
        print(result.export(name, out or Path(result.file_name(name, tau)), tau=tau, **options))


def _format_options(format: str | None, options: list[str]) -> dict[str, str]:
    """Options as name and value.

    Raises:
        ValueError: the format is unknown, or an option has no value.
    """
    formats = get_args(ExportFormat)
    if format is not None and format.replace("-", "_") not in formats:
        raise ValueError(f"--format: must be one of {', '.join(formats)}, got {format}")
    if format is None and options:
        raise ValueError("--option: needs --format")
    pairs = [option.partition("=") for option in options]
    for name, separator, _ in pairs:
        if not separator:
            raise ValueError(f"--option: must be NAME=VALUE, such as tracks=polygon, got {name}")
    return {name: value for name, _, value in pairs}


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Owner of the key; an owner sees only their own jobs.")],
    data: DataOption = None,
) -> None:
    """Create an API key and print it; the service stores only its hash."""
    settings = _settings(data_dir=data)
    print(add_key(settings.keys_file, name))
    console.print(f"hash appended to {escape(str(settings.keys_file))}; a running service reloads the file")


@keys.command("list")
def show_keys(data: DataOption = None) -> None:
    """List the API keys in the keys file: owner and the beginning of the hash."""
    for name, digest in list_keys(_settings(data_dir=data).keys_file):
        print(f"{name:<32}  {digest[:12]}")


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Owner whose keys are revoked; jobs remain.")], data: DataOption = None
) -> None:
    """Revoke all API keys of an owner in the keys file; a running service reloads the file."""
    settings = _settings(data_dir=data)
    count = revoke_keys(settings.keys_file, name)
    console.print(f"{count} key{'s' * (count != 1)} of {escape(name)} removed from {escape(str(settings.keys_file))}")


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


def _serve(settings: Settings, listener: socket.socket, *, attached: bool) -> None:
    """Run the API until SIGTERM or SIGINT."""
    from service.app import create_server
    from service.http.timeouts import Timeouts

    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))  # one per connection
    configure_logging("api", as_json=settings.log_format == "json")
    server = create_server(settings, timeouts=Timeouts())

    def stop() -> None:
        server.should_exit = True

    if attached:
        exit_with_parent(stop)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(CANNOT_START)


def _environment(settings: Settings, *, redis_url: str | None) -> dict[str, str]:
    """The environment of API and workers; without `redis_url` they inherit UVOS_REDIS_URL."""
    options = {
        "UVOS_HOST": settings.host,
        "UVOS_PORT": str(settings.port),
        "UVOS_DATA_DIR": str(settings.data_dir.resolve()),
        "UVOS_MODEL": settings.default_model,
    }
    return os.environ | options | ({} if redis_url is None else {"UVOS_REDIS_URL": redis_url})


def main() -> None:
    """Run the command line; an expected failure prints one sentence and exits with status 1."""
    try:
        app()
    except UvosError as error:
        message = error.sentence
    except RequestFailed as error:
        message = in_options(error.problem)
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
