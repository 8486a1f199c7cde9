"""The command that serves."""

import json
from pathlib import Path
from typing import Any

import click

from lineahead.errors import BackendError, InputError
from lineahead.recipes.console import DRAFTER, artifact_argument, backend_options, json_option, note

FIELDS = {"prefix_mb": "prefix_cache", "timeout_s": "timeout", "provider": "device"}


@click.command()
@artifact_argument
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--name", help="The model's name in the API [default: the folder's].")
@click.option("--slots", default=16, help="Requests decoded together.")
@click.option("--queue", default=256, help="Requests that may wait; more get status 429.")
@click.option("--chunk", default=64, help="Prompt tokens per call, and the grain of cached prefixes.")
@click.option("--prefill-budget", default=64, help="Prompt tokens read between two decoding steps.")
@click.option("--prefix-cache", "prefix_mb", default=256, help="MiB of cached prefix states; 0 for none.")
@click.option("--private-prefixes", is_flag=True, help="Share cached prefixes within an API key only.")
@click.option("--speculate", type=DRAFTER, default="none", help="What proposes tokens.")
@click.option("--draft-length", default=5, help="Most tokens proposed per step.")
@click.option("--ungoverned", is_flag=True, help="Propose always, whether it pays or not.")
@click.option("--api-key", "api_keys", multiple=True, envvar="LINEAHEAD_API_KEYS", help="Let only these in.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File with a key on each line.")
@click.option("--max-tokens", default=2048, help="Most tokens of a choice.")
@click.option("--max-choices", default=16, help="Most choices of a request.")
@click.option("--max-body", "max_body_kb", default=1024, help="Most KiB of a request's body.")
@click.option("--timeout", "timeout_s", default=600.0, help="Seconds after which a request is cut.")
@click.option("--drain", "drain_s", default=30.0, help="Seconds that running requests get to end on SIGTERM.")
@click.option("--ignore-position-limit", is_flag=True, help="Go on past the trained positions.")
@backend_options
@json_option
def serve(artifact: Path, host: str, port: int, as_json: bool, **options: Any) -> None:
    """Serve ARTIFACT over HTTP with the API of OpenAI's clients; a chat page is at /.

    On SIGTERM no new requests are taken, running ones end or are cut after --drain seconds.
    """
    try:
        from lineahead.runtime.server.app import create_app
        from lineahead.runtime.server.metrics import Metrics
        from lineahead.runtime.server.run import serve as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lineahead"):
            raise
        raise BackendError(
            f"serving needs {error.name}", hint='Run `pip install "lineahead[serve]"`.'
        ) from error
    from lineahead.runtime.server.settings import ServerSettings

    settings = ServerSettings(
        name=options.pop("name") or artifact.resolve().name,
        api_keys=(*options.pop("api_keys"), *_keys(options.pop("api_key_file"))),
        max_body_bytes=options.pop("max_body_kb") << 10,
        max_tokens=options.pop("max_tokens"),
        max_choices=options.pop("max_choices"),
        private_prefixes=options.pop("private_prefixes"),
    )
    drain_s, metrics = options.pop("drain_s"), Metrics()
    engine = _engine(artifact, metrics, options)

    def announce(url: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": url, "model": settings.name}))
        else:
            note(f"{settings.name} at {url} (chat page at /, API at /v1)")

    app = create_app(engine.start(), settings, metrics)
    run(app, engine, host=host, port=port, drain_s=drain_s, announce=announce)


def _engine(artifact: Path, metrics: Any, options: dict[str, Any]) -> Any:
    """The engine of the command's options.

    Raises:
        InputError: naming an option that is out of range.
    """
    from pydantic import ValidationError

    from lineahead.runtime.engine.options import EngineOptions

    more = {name: options.pop(name) for name in ("implementation", "rebuild")}
    governed = not options.pop("ungoverned")
    named = {FIELDS.get(name, name): value for name, value in options.items()}
    try:
        chosen = EngineOptions(governed=governed, **named)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise InputError(
            f"--{option} {first['input']}: {first['msg'].lower()}", hint="See `lineahead serve --help`."
        ) from error
    return chosen.open(artifact, metrics, **more)


def _keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="Give a text file of keys.") from error
    if not lines:
        raise InputError(f"{path}: no key in it", hint="Write one key on each line.")
    return tuple(lines)


COMMANDS: tuple[click.Command, ...] = (serve,)
