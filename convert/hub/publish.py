"""What comes before a push: the folder is checked, its example is run, and its card is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lineahead.convert.hub import card
from lineahead.convert.hub.contents import CARD, Contents, check_intact, contents, read_certificate
from lineahead.convert.hub.licence import inherited
from lineahead.convert.hub.trial import try_out
from lineahead.errors import ArtifactError, InputError
from lineahead.recipes.files import write_text
from lineahead.recipes.manifest import read_manifest


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the manifest cannot say.

    Attributes:
        license: identifier, where the base model's is not known.
        license_name: of a licence without identifier.
        license_link: to its text.
        base_model: Hub id of the original.
        datasets: Hub ids of training data.
        include: patterns of further files to publish.
        trial: whether the example is run.
        prompt: of the example.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    trial: bool = True
    prompt: str = ""


def prepare(folder: Path, repo: str, wishes: Wishes, *, announce: Callable[[str], None]) -> Contents:
    """Check an artifact and write its card, unless its user wrote one.

    Args:
        folder: the artifact folder.
        repo: where it goes, ``owner/name``.
        wishes: what the manifest cannot say.
        announce: told what is going on.

    Returns:
        The files to publish.

    Raises:
        InputError: for a name that is none, and for a licence that is unknown or forbids it.
        ArtifactError: when a file is missing, changed, damaged, or no part of an artifact.
        HubError: when the example fails.
    """
    for name in (repo, wishes.base_model):
        if name is not None and card.HUB_ID.fullmatch(name) is None:
            raise InputError(f"{name}: not a repository name", hint="Write it as owner/name.")
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}: no such folder", hint="Give the folder that `lineahead convert` wrote."
        )
    manifest = read_manifest(folder)
    licence = inherited(
        manifest.base.license,
        folder,
        given=wishes.license,
        name=wishes.license_name,
        link=wishes.license_link,
    )
    found = contents(folder, also=wishes.include)
    check_intact(found, manifest)
    if not manifest.files:
        announce(f"{folder}: its manifest is of an older version and holds no hashes of the weights")
    certificate = read_certificate(found)
    trial = None
    if wishes.trial and manifest.model.vocab_size and _is_decoder(manifest.logits is not None, folder):
        announce("running the card's example where lineahead cannot be imported")
        trial = try_out(folder, manifest.logits, prompt=wishes.prompt)
    if card.is_own(folder):
        announce(f"{folder / CARD} is your own and stays as it is")
        return found
    text = card.render(
        folder,
        manifest,
        repo=repo,
        licence=licence,
        base_model=wishes.base_model,
        datasets=wishes.datasets,
        trial=trial,
        certificate=certificate,
        prompt=wishes.prompt,
    )
    write_text(folder / CARD, text)
    return contents(folder, also=wishes.include)


def _is_decoder(has_logits: bool, folder: Path) -> bool:
    """Whether the example, which generates, is about this model."""
    return has_logits or '"AutoModelForCausalLM"' in (folder / "config.json").read_text(encoding="utf-8")
