"""The licence of what is published: the base model's, known to the Hub, and one that allows derivatives."""

from dataclasses import dataclass
from pathlib import Path

from lineahead.errors import InputError

# Identifiers that the Hub's model cards accept.
KNOWN = frozenset(
    (
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "apple-amlr",
        "apple-ascl",
        "artistic-2.0",
        "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigscience-openrail-m",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "c-uda",
        "cc",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "creativeml-openrail-m",
        "deepfloyd-if-license",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "fair-noncommercial-research-license",
        "gemma",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "grok2-community",
        "h-research",
        "intel-research",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "lgpl-lr",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "lppl-1.3c",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "ofl-1.1",
        "openmdw-1.0",
        "openrail",
        "openrail++",
        "osl-3.0",
        "other",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    )
)
ALIASES = {
    "apache 2.0": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache license, version 2.0": "apache-2.0",
    "mit license": "mit",
    "bsd-3": "bsd-3-clause",
}


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What the card's header says.

    Attributes:
        identifier: the Hub's.
        name: of a licence that the Hub does not know; with ``other``.
        link: to its text, likewise.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def non_commercial(self) -> bool:
        """Whether commercial use is excluded."""
        return "-nc" in self.identifier or "noncommercial" in self.identifier


def inherited(
    stated: str | None,
    folder: Path,
    *,
    given: str | None = None,
    name: str | None = None,
    link: str | None = None,
) -> Licence:
    """The licence to publish under.

    Args:
        stated: what the manifest says of the base model.
        folder: the artifact, which may hold a ``LICENSE`` file.
        given: what the user says it is, where nothing is known.
        name: of a licence without identifier.
        link: to its text.

    Raises:
        InputError: when it is unknown, contradicts the base model's, or forbids derivatives.
    """
    known, said = _normal(stated), _normal(given)
    if said is not None and said not in KNOWN:
        raise InputError(
            f"--license {given}: not an identifier of the Hub",
            hint="Use one of hf.co/docs/hub/repositories-licenses.",
        )
    if known in KNOWN and known != "other" and said not in (None, known):
        raise InputError(
            f"--license {given}: the base model is under {known}",
            hint="Drop --license: a derived model inherits it.",
        )
    chosen = said or known
    if chosen not in KNOWN:
        what = "unknown" if stated in (None, "unknown") else f"{stated!r}, which the Hub does not know"
        raise InputError(
            f"the licence of the base model is {what}",
            hint="Look it up and pass --license ID (or other, with --license-name and --license-link).",
        )
    assert chosen is not None
    if "-nd-" in chosen:
        raise InputError(f"{chosen} allows no derived models", hint="Do not publish it, or ask its owner.")
    if chosen != "other":
        return Licence(identifier=chosen)
    own = next((path.name for path in sorted(folder.glob("LICENSE*"))), None)
    if name is None or (link or own) is None:
        raise InputError(
            "--license other needs the licence's name and text",
            hint="Pass --license-name NAME, and --license-link URL or a LICENSE file in the folder.",
        )
    return Licence(identifier="other", name=name, link=link or own)


def _normal(text: str | None) -> str | None:
    if text is None:
        return None
    lowered = " ".join(text.lower().split())
    return ALIASES.get(lowered, lowered)
