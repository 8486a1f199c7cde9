"""The commands that measure: a model's speed, and a server's under load."""

from pathlib import Path
from typing import Any

import click

from lineahead.errors import InputError
from lineahead.recipes.console import (
    DECODED,
    DEVICE,
    artifact_argument,
    draft_model_options,
    json_option,
    note,
    show,
)
from lineahead.recipes.json_file import parse_object


class _Benches(click.Group):
    """``bench ARTIFACT`` is ``bench model ARTIFACT``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the command that is left out."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["model", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Benches)
def bench() -> None:
    """Measure a model's speed, or a server's under load: `bench ARTIFACT`, `bench serve URL`."""


@bench.command("model")
@artifact_argument
@click.option("--context", "contexts", multiple=True, type=int, help="Context length (may be repeated).")
@click.option("--ignore-position-limit", is_flag=True, help="Time contexts past the position limit.")
@click.option("--precision", "precisions", multiple=True, type=DECODED, help="Graph or engine to measure.")
@click.option(
    "--backend",
    type=click.Choice(("onnxruntime", "tensorrt")),
    default="onnxruntime",
    help="What runs the graph.",
)
@click.option(
    "--device",
    "provider",
    type=DEVICE,
    default="cpu",
    help="Where ONNX Runtime runs it; engines run on the GPU.",
)
@click.option("--threads", default=2, help="Threads of every program measured.")
@click.option("--text", type=click.Path(path_type=Path), help="Text that fills the context.")
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="Prompts for speculation: lines or JSON lines."
)
@click.option("--prompt-count", default=10, help="How many of them.")
@click.option("--tokens", default=128, help="Tokens generated for each.")
@click.option("--temperature", default=0.0, help="0 decodes greedily.")
@click.option("--draft-length", "draft_nodes", default=5, help="Most tokens proposed per step.")
@draft_model_options
@click.option("--governed", is_flag=True, help="Also run each drafter under the governor.")
@click.option("--baseline", metavar="CHECKPOINT", help="Original checkpoint for transformers.generate.")
@click.option("--gguf", metavar="FILE", help="GGUF file for llama.cpp.")
@click.option("--samples", default=32, help="Timed steps per point.")
@json_option
def bench_model(
    artifact: Path,
    contexts: tuple[int, ...],
    precisions: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure ARTIFACT's speed, other programs beside it, and the ratios; prints achieved GB/s."""
    from lineahead.runtime.bench.report import BenchRequest
    from lineahead.runtime.bench.report import bench as measure

    request = BenchRequest(contexts=contexts, precisions=precisions or ("fp32",), **options)
    show(measure(artifact, request, progress=note).as_dict(), as_json)


@bench.command("serve")
@click.argument("servers", nargs=-1, required=True, metavar="[NAME=]URL[#MODEL]...")
@click.option(
    "--prompts", multiple=True, required=True, type=click.Path(path_type=Path), help="File of prompts."
)
@click.option("--longest", default=4000, help="Characters of a prompt; longer ones are left out.")
@click.option("--concurrency", "clients", multiple=True, type=int, help="Clients (repeat) [default: 1, 16].")
@click.option("--rate", "rates", multiple=True, type=float, help="Requests/s offered (repeat).")
@click.option(
    "--rising",
    is_flag=True,
    help="Offer shares of what --concurrency reached [default: without it and --rate].",
)
@click.option("--requests", default=64, help="Of each load; a quarter of them for one client.")
@click.option("--max-tokens", default=128, help="Of an answer.")
@click.option("--body", metavar="JSON", help="More fields of every request, e.g. '{\"seed\": 1}'.")
@click.option("--ttft", "ttft_s", default=1.0, help="Seconds to the first token of a good answer.")
@click.option("--tpot", "tpot_s", default=0.1, help="Seconds per token after it of a good answer.")
@click.option("--warmup", default=4, help="Requests that are not measured.")
@click.option("--seed", default=0, help="Of the arrivals and the order of the prompts.")
@click.option("--timeout", "timeout_s", default=300.0, help="Seconds of silence that end a request.")
@click.option("--api-key", "key", default="", envvar="LINEAHEAD_API_KEY", help="Sent to every server.")
@click.option("--remote", is_flag=True, help="The servers may be other machines.")
@click.option("--soak", "minutes", type=float, help="Instead: minutes at --load, memory and times watched.")
@click.option("--load", "share", default=0.8, help="With --soak: share of what --concurrency reaches.")
@click.option("--pid", "process", type=int, help="With --soak: the server's process, for its memory.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for JSON, Markdown and plots.")
@json_option
def bench_serve(
    servers: tuple[str, ...],
    key: str,
    remote: bool,
    body: str | None,
    ttft_s: float,
    tpot_s: float,
    minutes: float | None,
    share: float,
    process: int | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Load servers that speak OpenAI's API with streamed chats: closed loops, then Poisson arrivals.

    Every server is measured alone, one after another. TTFT counts from when a request was due. Clients run in
    this process, so give them a core that the server does not need, or read the figures as a lower bound.
    """
    from lineahead.runtime.bench.serving.figures import Targets
    from lineahead.runtime.bench.serving.request import CLIENTS, ServeRequest
    from lineahead.runtime.bench.serving.target import open_target

    targets = Targets(ttft_s=ttft_s, tpot_s=tpot_s)
    if not options["clients"] and not options["rates"]:
        options |= {"clients": CLIENTS, "rising": True}
    request = ServeRequest(targets=targets, body=_body(body), **options)
    found = [open_target(one, key=key, remote=remote) for one in servers]
    if len({one.name for one in found}) < len(found):
        raise InputError("two servers have the same name", hint="Write NAME=URL.")
    if minutes is not None:
        if len(found) > 1:
            raise InputError("--soak with several servers", hint="Soak one at a time.")
        _soak(found[0], request, minutes, share, process, output, as_json)
        return
    from lineahead.runtime.bench.serving.report import bench_servers
    from lineahead.runtime.bench.serving.writing import rows, write_report

    report = bench_servers(found, request, progress=note)
    if output is not None:
        write_report(report, output)
    show(report.as_dict() if as_json else rows(report), as_json)


def _soak(
    target: Any,
    request: Any,
    minutes: float,
    share: float,
    process: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    from lineahead.recipes.console import counting
    from lineahead.runtime.bench.serving.soak import soak
    from lineahead.runtime.bench.serving.writing import write_soak

    if not request.clients:
        raise InputError(
            "--soak with --rate alone", hint="Give --concurrency, which measures what is possible."
        )
    with counting() as progress:
        found = soak(target, request, minutes=minutes, share=share, process=process, progress=progress)
    if output is not None:
        write_soak(found, output)
    summary = {
        "minutes": minutes,
        "rate_per_s": found.rate_per_s,
        "megabytes_first": found.megabytes[0] if found.megabytes else None,
        "megabytes_last": found.megabytes[-1] if found.megabytes else None,
        "growth_megabytes": found.growth_megabytes,
        **found.point,
    }
    show(found.as_dict() if as_json else summary, as_json)


def _body(text: str | None) -> dict[str, Any]:
    try:
        return parse_object(text or "{}")
    except ValueError as error:
        raise InputError(f"--body: {error}", hint="Give one JSON object.") from error


COMMANDS: tuple[click.Command, ...] = (bench,)
