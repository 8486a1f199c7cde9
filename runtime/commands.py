"""Commands that use artifacts: parse, one library call, print. Nothing heavy is imported before one runs."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click

from lineahead.errors import InputError
from lineahead.recipes.console import (
    ANY_DRAFTER,
    CERTIFIED,
    artifact_argument,
    backend_options,
    draft_model_options,
    json_option,
    note,
    read_prompt,
    sampling_options,
    show,
)

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@click.command()
@artifact_argument
@click.option("--prompts", type=click.Path(path_type=Path), help="File of prompts: lines or JSON lines.")
@click.option("--count", default=20, help="How many of them.")
@click.option("--tokens", default=256, help="Tokens generated for each.")
@click.option("--batch", default=4, help="Rows of the batched check.")
@click.option("--temperature", default=0.0, help="Above 0, the same seeds must give the same text.")
@click.option("--seed", default=0, help="Of the random streams.")
@click.option("--certificate", is_flag=True, help="Check everything and write certificate.json to ARTIFACT.")
@click.option("--also", multiple=True, type=CERTIFIED, help="With --certificate: other precisions to check.")
@click.option("--samples", default=2000, help="With --certificate: sampled pairs for each shape of draft.")
@click.option("--original", metavar="CHECKPOINT", help="Also transformers' text of it; no layer converted.")
@draft_model_options
@backend_options
@json_option
def verify(
    artifact: Path,
    prompts: Path | None,
    count: int,
    temperature: float,
    seed: int,
    certificate: bool,
    also: tuple[str, ...],
    samples: int,
    original: str | None,
    draft_model: Path | None,
    draft_precision: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Prove that speculation does not change the text of ARTIFACT: chains, trees, lookup, heads, batches.

    The exit status is 1 when a text differs. A certificate also compares sampled text with the target's
    exact distribution and the state after rejections with one built from the text alone, classifies the
    differences of other precisions, and names the files and the code by their hashes.
    """
    from lineahead.runtime import demo as examples
    from lineahead.runtime.bench.prompts import read_prompts
    from lineahead.runtime.generate import Generator, open_drafter
    from lineahead.runtime.sampling import SamplingParams
    from lineahead.runtime.verify import verify as compare

    sizes = {name: options.pop(name) for name in ("tokens", "batch")}

    def texts(generator: Generator) -> Sequence[Any]:
        return read_prompts(prompts, count) if prompts else examples.prompts(generator)

    if certificate:
        if original is not None or draft_model is not None:
            raise InputError("--certificate with --original or --draft-model", hint="Check them apart.")
        _certify(
            artifact,
            texts,
            also,
            {"tokens": sizes["tokens"], "samples": samples, "seed": seed},
            options,
            as_json,
        )
    if draft_model is not None:
        _share_threads(options)
    generator = Generator.load(artifact, **options)
    more = {}
    if draft_model is not None:
        more["model"] = open_drafter(
            generator.artifact,
            "model",
            model=draft_model,
            precision=draft_precision,
            provider=options["provider"],
            threads=options["threads"],
        )
    params = SamplingParams(temperature=temperature, seed=seed)
    report = compare(
        generator,
        texts(generator),
        params=params,
        also=more,
        original=None if original is None else _texts_of(original, artifact),
        **sizes,
    )
    show(report.as_dict(), as_json)
    sys.exit(0 if report.identical else 1)


def _texts_of(original: str, artifact: Path) -> Callable[..., Sequence[Sequence[int]]]:
    """What transformers writes on a checkpoint, to be compared with an artifact that is the same model."""
    from lineahead.recipes.manifest import read_manifest
    from lineahead.runtime.bench.baselines import require_checkpoint, transformers_texts

    require_checkpoint(original)
    converted = len(read_manifest(artifact).model.linear_layers)
    if converted:
        raise InputError(
            f"--original: {converted} layers of {artifact} are converted, so it writes another text",
            hint="Make one without: `lineahead convert CHECKPOINT OUT --recipe original`.",
        )
    return partial(transformers_texts, original)


def _share_threads(backend: Mapping[str, Any]) -> None:
    """Let a model and its draft model take turns in one pool of threads."""
    if backend["backend"] == "onnxruntime":
        from lineahead.runtime.backends.ort_library import share_threads

        share_threads(backend["threads"])


def _certify(
    artifact: Path,
    texts: Callable[[Any], Sequence[Any]],
    also: Sequence[str],
    sizes: dict[str, int],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the certificate, print a summary, and exit."""
    from lineahead.recipes.console import counting
    from lineahead.runtime.certificate.document import FILE, certify, write_certificate
    from lineahead.runtime.generate import Generator

    if options.pop("precision") != "fp32":
        raise InputError("--precision with --certificate", hint="Name other precisions with --also.")

    def opener(precision: str) -> Generator:
        chosen = {**options, "backend": "eager"} if precision in ("bf16", "fp16") else options
        return Generator.load(artifact, precision=precision, **chosen)

    with counting() as progress:
        made = certify(opener, texts, reduced=also, progress=progress, **sizes)
    write_certificate(made, artifact / FILE)
    summary = {
        "passed": made.passed,
        "identical": made.identical,
        "defects": made.defects,
        "near_ties": made.near_ties,
        "sampling": {one.drafter: round(one.test.p_value, 4) for one in made.samples},
        "state_difference": made.state.difference,
        "file": str(artifact / FILE),
    }
    show(made.as_dict() if as_json else summary, as_json)
    sys.exit(0 if made.passed else 1)


@click.command()
@artifact_argument
@click.option("-p", "--prompt", help="The prompt; without it or --file, standard input is read.")
@click.option("-f", "--file", type=click.File(encoding="utf-8"), help="File with the prompt.")
@click.option("--chat/--raw", default=None, help="Use the chat template [default: when there is one].")
@click.option("--speculate", type=ANY_DRAFTER, default="none", help="What proposes tokens.")
@click.option("--tree/--chain", default=True, help="Shape of the Medusa heads' proposals.")
@draft_model_options
@click.option("--draft-length", default=8, help="Most tokens proposed per step.")
@click.option("--governed", is_flag=True, help="Let measured costs choose the draft length.")
@click.option("--typical", is_flag=True, help="Medusa's typical acceptance: LOSSY, changes the distribution.")
@click.option("--ignore-position-limit", is_flag=True, help="Go on past the trained positions.")
@click.option("--state", type=click.Path(path_type=Path), help="Go on from a file of `lineahead prefix`.")
@click.option("-n", "--samples", default=1, help="Answers, side by side; each has its own random stream.")
@click.option("--stats", is_flag=True, help="Print counts and times to stderr.")
@sampling_options
@backend_options
@json_option
def generate(
    artifact: Path,
    prompt: str | None,
    file: TextIO | None,
    chat: bool | None,
    speculate: str,
    tree: bool,
    draft_length: int,
    draft_model: Path | None,
    draft_precision: str,
    governed: bool,
    typical: bool,
    ignore_position_limit: bool,
    state: Path | None,
    samples: int,
    stats: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Stream an answer of ARTIFACT to standard output; of several, each when it is finished."""
    from lineahead.runtime import acceptance
    from lineahead.runtime.generate import Generator, open_drafter
    from lineahead.runtime.sampling import SamplingParams

    text = read_prompt(prompt, file)
    backend = {
        name: options.pop(name)
        for name in ("backend", "precision", "provider", "threads", "implementation", "rebuild")
    }
    params = SamplingParams(**options)
    if draft_model is not None and speculate not in ("model", "auto"):
        raise InputError(
            f"--draft-model with --speculate {speculate}", hint="Use --speculate model, or auto."
        )
    if speculate == "model" or draft_model is not None:
        _share_threads(backend)
    generator = Generator.load(artifact, **backend)
    drafter = open_drafter(
        generator.artifact,
        speculate,
        nodes=draft_length,
        shape="adaptive" if tree else "chain",
        provider=backend["provider"],
        threads=backend["threads"],
        model=draft_model,
        precision=draft_precision,
        session=generator.session,
    )
    if chat is None:
        chat = generator.tokenizer.template is not None
    common: dict[str, Any] = {"drafter": drafter, "ignore_position_limit": ignore_position_limit}
    if state is not None:
        from lineahead.runtime.prefix import chat_parts, continue_prefix

        if typical or governed:
            raise InputError("--state with --typical or --governed", hint="Leave one of them out.")
        rest = chat_parts(generator, "", text)[1] if chat else generator.tokenizer.encode(text, special=False)
        events = continue_prefix(generator, state, rest, [params] * samples, **common)
    else:
        tokens = generator.chat([{"role": "user", "content": text}]) if chat else generator.encode(text)
        events = generator.stream(
            [tokens] * samples,
            params,
            acceptance=acceptance.typical() if typical else acceptance.lossless,
            governed=governed,
            **common,
        )
    texts = _echoed(events, samples, live=samples == 1 and not as_json)
    figures = generator.statistics.as_dict()
    if as_json:
        found = {"text": texts[0]} if samples == 1 else {"texts": texts}
        show({**found, "lossless": not typical, "statistics": figures}, as_json)
        return
    click.echo("" if samples == 1 else "\n\n---\n\n".join(texts))
    if stats:
        note(json.dumps(figures))


def _echoed(events: Iterable[Any], samples: int, *, live: bool) -> list[str]:
    """The texts; a single one is printed as it comes."""
    texts = [""] * samples
    for event in events:
        texts[event.request] += event.text
        if live:
            click.echo(event.text, nl=False)
            sys.stdout.flush()
    return texts


@click.command()
@artifact_argument
@click.option("-f", "--file", required=True, type=click.File(encoding="utf-8"), help="The text to read.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--chat/--raw", default=None, help="As a chat turn's beginning [default: with a template].")
@click.option("--chunk", default=256, help="Tokens per call of the model.")
@click.option("--ignore-position-limit", is_flag=True, help="Go on past the trained positions.")
@backend_options
@json_option
def prefix(
    artifact: Path,
    file: TextIO,
    output: Path,
    chat: bool | None,
    chunk: int,
    ignore_position_limit: bool,
    as_json: bool,
    **backend: Any,
) -> None:
    """Read a long text once and keep ARTIFACT's decoding state, to be answered from with `generate --state`.

    The file has the same size for any text; it is refused by other models, and when it is damaged.
    """
    from lineahead.recipes.console import counting
    from lineahead.runtime.generate import Generator
    from lineahead.runtime.prefix import chat_parts, read_prefix, save_prefix

    text = read_prompt(None, file)
    generator = Generator.load(artifact, **backend)
    if chat is None:
        chat = generator.tokenizer.template is not None
    tokens = chat_parts(generator, text)[0] if chat else generator.encode(text)
    begun = time.perf_counter()
    with counting() as progress:
        read_prefix(
            generator, tokens, chunk=chunk, ignore_position_limit=ignore_position_limit, progress=progress
        )
    seconds = time.perf_counter() - begun
    save_prefix(generator, tokens, output)
    show(
        {
            "tokens": len(tokens),
            "seconds": round(seconds, 2),
            "tokens_per_s": round(len(tokens) / seconds, 1),
            "bytes": output.stat().st_size,
            "file": str(output),
        },
        as_json,
    )


@click.command()
@artifact_argument
@click.option("--tokens", default=100_000, help="Length of the stream.")
@click.option("--prompt", default="Once upon a time", help="What it begins with.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG file to draw.")
@backend_options
@json_option
def endurance(
    artifact: Path, tokens: int, prompt: str, plot: Path | None, as_json: bool, **backend: Any
) -> None:
    """Stream one long text from ARTIFACT: time per token and memory must stay flat."""
    from lineahead.recipes.console import counting
    from lineahead.runtime.bench.endurance import measure_endurance, plot_endurance
    from lineahead.runtime.generate import Generator

    generator = Generator.load(artifact, **backend)
    with counting() as progress:
        found = measure_endurance(generator, generator.encode(prompt), tokens, progress=progress)
    if plot is not None:
        plot_endurance(
            found, plot, f"{artifact.name}, {backend['precision']}, {generator.session.info.device}"
        )
    figures = found.as_dict()
    summary = {
        "tokens": found.tokens[-1],
        "ms_first": round(found.milliseconds[0], 3),
        "ms_last": round(found.milliseconds[-1], 3),
        "slower": figures["slower"],
        "megabytes": round(found.megabytes[-1], 1),
        "growth_megabytes": figures["growth_megabytes"],
    }
    show(figures if as_json else summary, as_json)


@click.command()
@click.argument("artifact", required=False, metavar="[ARTIFACT|OWNER/NAME]")
@json_option
def doctor(artifact: str | None, as_json: bool) -> None:
    """Check this installation, and the parts of ARTIFACT or of a Hub repository; problems come with a cure.

    The exit status is 1 when there is a problem.
    """
    from lineahead.runtime.artifact_check import examine_artifact
    from lineahead.runtime.doctor import examine_environment

    findings = examine_environment()
    if artifact is not None and not Path(artifact).exists() and REPOSITORY.fullmatch(artifact):
        from lineahead.runtime.remote_check import examine_repository

        findings += examine_repository(artifact)
    elif artifact is not None:
        findings += examine_artifact(Path(artifact))
    rows = [one.as_dict() for one in findings]
    healthy = all(one.status != "problem" for one in findings)
    show({"healthy": healthy, "findings": rows} if as_json else rows, as_json)
    sys.exit(0 if healthy else 1)


COMMANDS: tuple[click.Command, ...] = (generate, prefix, verify, endurance, doctor)
