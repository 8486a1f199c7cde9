"""``lineahead push``, ``lineahead pull``, ``lineahead card``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lineahead.recipes.console import Command, artifact_argument, json_option, note, show

PROMPT = "The most important thing about"


def card_options(command: Command) -> Command:
    """What the card cannot know from the manifest."""
    for option in (
        click.option(
            "--trial/--no-trial", default=True, help="Run the card's example first, in a fresh process."
        ),
        click.option("--prompt", default=PROMPT, help="Of the card's example."),
        click.option("--dataset", "datasets", multiple=True, help="Hub id of training data (repeatable)."),
        click.option("--base-model", help="Hub id of the original [default: the manifest's]."),
        click.option("--license-link", help="Of a licence without identifier: address of its text."),
        click.option("--license-name", help="Of a licence without identifier."),
        click.option("--license", help="The base model's, where the manifest does not know it."),
        click.option(
            "--include", multiple=True, metavar="PATTERN", help="Publish these files, too (repeatable)."
        ),
    ):
        command = option(command)
    return command


@click.command()
@artifact_argument
@click.argument("repo")
@click.option("--revision", default="main", help="Branch; made from main if need be.")
@click.option("--private/--public", default=None, help="Of a new repository [default: its owner's].")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--message", default="Upload with lineahead", help="Of the commit.")
@click.option("--parent-commit", metavar="SHA", help="Refuse to push on anything else.")
@click.option("--dry-run", is_flag=True, help="List what would be done; write nothing.")
@card_options
@json_option
def push(
    artifact: Path,
    repo: str,
    revision: str,
    private: bool | None,
    create_pr: bool,
    message: str,
    parent_commit: str | None,
    dry_run: bool,
    as_json: bool,
    **card: Any,
) -> None:
    """Publish ARTIFACT as the Hub repository REPO (owner/name), in one commit; write its model card first.

    The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another Hub. A push that was cut off
    goes on where it was when run again.
    """
    from lineahead.convert.hub.publish import Wishes, prepare
    from lineahead.convert.hub.push import Target, preview
    from lineahead.convert.hub.push import push as publish

    target = Target(
        repo=repo,
        revision=revision,
        private=private,
        create_pr=create_pr,
        message=message,
        parent=parent_commit,
        also=card["include"],
    )
    found = prepare(artifact, repo, Wishes(**card), announce=note)
    if dry_run:
        remote, steps = preview(found, target)
        rows = [step.row() for step in steps]
        state = (
            f"at {str(remote.head)[:8]}" if remote.head else "not there yet" if not remote.exists else "empty"
        )
        note(f"{repo}: {state}; nothing was written there")
        show(
            {"repo": repo, "head": remote.head, "exists": remote.exists, "files": rows} if as_json else rows,
            as_json,
        )
        return
    done = publish(found, target, announce=note)
    changed = sum(step.status in ("new", "changed", "delete") for step in done.steps)
    summary = {"url": done.pull_request or done.url, "commit": done.commit, "changed files": changed}
    show(done.as_dict() if as_json else summary, as_json)


@click.command()
@click.argument("repo")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--revision", default="main", help="Branch, tag, commit, or refs/pr/N.")
@click.option("--overwrite", is_flag=True, help="Replace the artifact in FOLDER.")
@json_option
def pull(repo: str, folder: Path, revision: str, overwrite: bool, as_json: bool) -> None:
    """Download the artifact in the Hub repository REPO to FOLDER and check it; nothing of it is run.

    A download that was cut off goes on where it was when run again. With HF_HUB_OFFLINE it comes from the Hub
    cache.
    """
    from lineahead.convert.hub.pull import pull as download

    done = download(repo, folder, revision=revision, overwrite=overwrite, announce=note)
    if done.left:
        note(f"left on the Hub, no part of an artifact: {', '.join(done.left)}")
    if not done.own_code:
        note("its modeling_lineahead.py is another version's: read it before you pass trust_remote_code=True")
    show(asdict(done), as_json)


@click.command()
@artifact_argument
@click.argument("repo")
@card_options
@json_option
def card(artifact: Path, repo: str, as_json: bool, **card: Any) -> None:
    """Write ARTIFACT's model card, README.md, as `lineahead push ARTIFACT REPO` would; no network."""
    from lineahead.convert.hub.publish import Wishes, prepare

    found = prepare(artifact, repo, Wishes(**card), announce=note)
    show({"card": str(found.folder / "README.md"), "files": len(found.files)}, as_json)


COMMANDS: tuple[click.Command, ...] = (push, pull, card)
