"""The certificate itself: what is checked, in which order, and the file it is written to."""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lineahead import __version__
from lineahead.errors import ArtifactError, InputError
from lineahead.recipes.files import write_text
from lineahead.recipes.json_file import read_object
from lineahead.runtime.certificate.hashes import artifact_hashes, code_hash
from lineahead.runtime.certificate.samples import SampleCheck, check_samples
from lineahead.runtime.certificate.states import StateCheck, check_state
from lineahead.runtime.generate import Generator, Prompt
from lineahead.runtime.sampling import SamplingParams
from lineahead.runtime.verify import Report, verify

FILE = "certificate.json"
FORMAT = 1
Progress = Callable[[str, int, int], None]
Opener = Callable[[str], Generator]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was checked and found.

    Attributes:
        passed: fp32 text identical, no defect in any precision, no sampling or state check that disagrees.
        identical: whether every speculative fp32 text equals plain decoding's, token for token.
        defects: divergences in any precision that are not near-ties.
        near_ties: the others: the margin is within the measured noise of the arithmetic.
        prompts: how many prompts were decoded.
        tokens: generated tokens for each.
        drafters: what proposed, in every precision.
        exact: the fp32 comparison.
        reduced: the same in lower precisions, by name.
        samples: sampled text against the target's exact distribution.
        state: the state after rejections against one built from the text alone.
        hashes: SHA-256 of the artifact's files, by path.
        code: SHA-256 of the sources that ran.
        created: UTC time.
        lineahead: version of the package.
        format: version of this document's layout.
    """

    passed: bool
    identical: bool
    defects: int
    near_ties: int
    prompts: int
    tokens: int
    drafters: tuple[str, ...]
    exact: Report
    reduced: dict[str, Report]
    samples: tuple[SampleCheck, ...]
    state: StateCheck
    hashes: dict[str, str]
    code: str
    created: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
    )
    lineahead: str = __version__
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def certify(
    opener: Opener,
    prompts: Callable[[Generator], Sequence[Prompt]],
    *,
    reduced: Sequence[str] = (),
    tokens: int = 256,
    reduced_prompts: int = 6,
    reduced_tokens: int = 96,
    samples: int = 2000,
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Certificate:
    """Check an artifact: text, lower precisions, sampling, state; and say which files that was.

    Args:
        opener: loads the artifact in a precision by name; ``fp32`` first.
        prompts: the prompts, given a loaded model.
        reduced: other precisions, in which a near-tie may go either way.
        tokens: generated for each prompt in fp32.
        reduced_prompts: most prompts in each other precision.
        reduced_tokens: generated for each there.
        samples: pairs drawn for each shape of draft.
        seed: of drafts and samples.
        progress: called with what is going on, and how much of it is done.

    Raises:
        InputError: without prompts, or with too few tokens for a text that folds into the state.
    """
    generator = opener("fp32")
    generator.artifact.require_decoder("a certificate")
    chosen = [generator.encode(prompt) for prompt in prompts(generator)]
    if not chosen:
        raise InputError("no prompts to certify with", hint="Give a file with at least one prompt.")
    exact = verify(generator, chosen, tokens=tokens, progress=progress)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    plain = generator.generate(chosen[:1], params)[0].tokens
    progress("state", 0, 1)
    state = check_state(generator, chosen[0], [*chosen[0], *plain], seed=seed)
    prompt = [*chosen[0], *plain[:8]][-256:]
    found = check_samples(generator, prompt, samples=samples, seed=seed, progress=progress)
    folder = generator.artifact.folder
    others = {}
    for precision in reduced:
        other = opener(precision)
        others[precision] = verify(other, chosen[:reduced_prompts], tokens=reduced_tokens, progress=progress)
    reports = (exact, *others.values())
    defects = sum(one.defects for one in reports)
    return Certificate(
        passed=exact.identical and not defects and state.agrees and all(one.agrees for one in found),
        identical=exact.identical,
        defects=defects,
        near_ties=sum(one.near_ties for one in reports),
        prompts=len(chosen),
        tokens=tokens,
        drafters=tuple(check.drafter for check in exact.checks),
        exact=exact,
        reduced=others,
        samples=tuple(found),
        state=state,
        hashes=artifact_hashes(folder),
        code=code_hash(),
    )


def write_certificate(certificate: Certificate, path: Path) -> None:
    """Write it as JSON, in one step.

    Raises:
        StorageError: when it cannot be written.
    """
    write_text(path, json.dumps(certificate.as_dict(), indent=2) + "\n")


def stale_files(folder: Path) -> list[str]:
    """Files of an artifact that its certificate does not speak of any more, or never did.

    Raises:
        ArtifactError: when the certificate is missing or damaged.
    """
    path = folder / FILE
    again = f"Make it again: lineahead verify {folder} --certificate."
    certified = read_object(path, error=ArtifactError, hint=again).get("hashes")
    if not isinstance(certified, dict):
        raise ArtifactError(f"{path}: damaged: no hashes", hint=again)
    present = artifact_hashes(folder)
    return sorted(
        name for name in certified.keys() | present.keys() if certified.get(name) != present.get(name)
    )
