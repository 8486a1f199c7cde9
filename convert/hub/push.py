"""Push: an artifact folder becomes one commit of a Hub repository, or nothing does."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session

from lineahead.convert.hub.contents import Contents
from lineahead.convert.hub.failures import TRANSPORT, hub_errors, may_pass, patiently, status_of
from lineahead.convert.hub.plan import Remote, Step, look, plan, same
from lineahead.errors import HubError

STALE = 412  # Precondition Failed: the parent commit is not the branch's head
FRESH_PARENTS = 3
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to and how.

    Attributes:
        repo: ``owner/name``.
        revision: branch; made from ``main`` if it does not exist.
        private: visibility of a new repository; the owner's default when None.
        create_pr: open a pull request instead of writing to the branch.
        message: of the commit.
        parent: the only commit to build on; the branch's head when None.
        also: patterns of further files that are the artifact's.
    """

    repo: str
    revision: str = "main"
    private: bool | None = None
    create_pr: bool = False
    message: str = "Upload with lineahead"
    parent: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was done.

    Attributes:
        repo: the repository.
        revision: the branch.
        commit: that holds the artifact.
        url: of it.
        pull_request: its address, if one was opened.
        created: whether the repository is new.
        steps: what was done with each file.
    """

    repo: str
    revision: str
    commit: str
    url: str
    pull_request: str | None
    created: bool
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [step.row() for step in self.steps]
        return {**{key: value for key, value in vars(self).items() if key != "steps"}, "files": rows}


def preview(found: Contents, target: Target) -> tuple[Remote, list[Step]]:
    """What :func:`push` would do; nothing is written. Without network everything counts as new.

    Raises:
        HubError: when the Hub refuses or cannot be reached.
    """
    if constants.is_offline_mode():
        remote = Remote(exists=False, head=None, files={})
    else:
        with hub_errors(target.repo):
            remote = patiently(lambda: look(HfApi(), target.repo, target.revision), "listing")
    return remote, plan(found, remote, also=target.also)


def push(found: Contents, target: Target, *, announce: Callable[[str], None] = logger.info) -> Pushed:
    """Publish a folder in one commit.

    Large files go first, and are no part of any branch until the commit names them; those that are there
    already are not sent again, so that a push that was cut off goes on where it was. If the branch has moved
    in the meantime, the commit is made anew on its head, unless a file of this artifact was changed there.

    Args:
        found: the files.
        target: where to.
        announce: told what is going on.

    Raises:
        HubError: when the Hub refuses or cannot be reached; when the branch moved under the artifact's files;
            when what was published differs from the folder.
    """
    api = HfApi()
    with hub_errors(target.repo, writing=True):
        if constants.is_offline_mode():
            raise HubError(f"{target.repo}: HF_HUB_OFFLINE is set", hint="Unset it, or use --dry-run.")
        if get_token() is None:
            raise HubError("no token for the Hub", hint="Log in with `hf auth login`, or set HF_TOKEN.")
        created = _prepare(api, target)
        _choose_transfer(target, announce)
        remote = patiently(lambda: look(api, target.repo, target.revision), "listing")
        for fresh in range(FRESH_PARENTS + 1):
            try:
                return patiently(lambda at=remote: _once(api, found, target, at, created, announce), "upload")  # type: ignore[misc]
            except HfHubHTTPError as error:
                if status_of(error) != STALE:
                    raise
                moved = patiently(lambda: look(api, target.repo, target.revision), "listing")
                _refuse_conflict(found, target, remote, moved, last=fresh == FRESH_PARENTS)
                announce(
                    f"{target.repo}: {target.revision} has moved to {str(moved.head)[:8]}; once more on it"
                )
                remote = moved
    raise AssertionError("unreachable")


def _prepare(api: HfApi, target: Target) -> bool:
    """Make the repository and the branch if need be; returns whether the repository is new."""
    there = patiently(lambda: look(api, target.repo, "main"), "listing")
    new = not there.exists
    if new and target.create_pr:
        raise HubError(
            f"{target.repo}: no such repository to open a pull request in", hint="Push without --create-pr."
        )
    if target.private and there.private is False:
        raise HubError(
            f"{target.repo}: is public, and stays so", hint="Make it private on its settings page first."
        )
    if new:
        patiently(lambda: api.create_repo(target.repo, private=target.private, exist_ok=True), "creating")
    if target.revision != "main" and not target.revision.startswith("refs/"):
        patiently(lambda: api.create_branch(target.repo, branch=target.revision, exist_ok=True), "branching")
    return new


def _choose_transfer(target: Target, announce: Callable[[str], None]) -> None:
    """Use plain LFS where the Hub has no Xet: its client would not."""
    if constants.HF_HUB_DISABLE_XET:
        return
    url = (
        f"{constants.ENDPOINT}/api/models/{target.repo}/xet-write-token/{target.revision.replace('/', '%2F')}"
    )
    answer = patiently(lambda: get_session().get(url, headers=build_hf_headers()), "transfer")
    if answer.status_code == 404:
        constants.HF_HUB_DISABLE_XET = True
        announce(f"{constants.ENDPOINT} offers no Xet storage: plain LFS uploads")


def _once(
    api: HfApi,
    found: Contents,
    target: Target,
    remote: Remote,
    created: bool,
    announce: Callable[[str], None],
) -> Pushed:
    """Upload and commit on one parent."""
    steps = plan(found, remote, also=target.also)
    changes = [step for step in steps if step.status in ("new", "changed", "delete")]
    if not changes:
        assert remote.head is not None
        return _result(target, steps, remote.head, None, created)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=step.path, is_folder=False)
        if step.status == "delete"
        else CommitOperationAdd(path_in_repo=step.path, path_or_fileobj=found.folder / step.path)
        for step in changes
    ]
    additions = [one for one in operations if isinstance(one, CommitOperationAdd)]
    sent = sum(step.size for step in changes if step.status != "delete")
    announce(f"{target.repo}: {len(additions)} files to publish, {sent / 1e6:.1f} MB")
    api.preupload_lfs_files(
        target.repo, additions, revision=target.revision, create_pr=target.create_pr, free_memory=False
    )
    commit = _commit(api, target, operations, target.parent or remote.head)
    _check_published(api, found, target, commit.oid)
    return _result(target, steps, commit.oid, commit.pr_url, created)


def _commit(
    api: HfApi,
    target: Target,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    parent: str | None,
) -> Any:
    """The one request that makes things visible.

    Its parent is named, so that sending it twice cannot commit twice. A pull request is sent once only.
    """

    def send() -> Any:
        return api.create_commit(
            target.repo,
            operations,
            commit_message=target.message,
            revision=target.revision,
            create_pr=target.create_pr,
            parent_commit=parent,
        )

    if not target.create_pr:
        return send()
    try:
        return send()
    except (TRANSPORT, HfHubHTTPError) as error:
        if may_pass(error) and not may_pass(error, twice=False):
            raise HubError(
                f"{target.repo}: the answer to the pull request was lost",
                hint="Look whether it was opened, before running the command again.",
            ) from error
        raise


def _refuse_conflict(found: Contents, target: Target, before: Remote, after: Remote, *, last: bool) -> None:
    """A branch that moved is followed, but no one's change to the same files is overwritten."""
    if target.parent is not None:
        raise HubError(
            f"{target.repo}: {target.revision} is at {str(after.head)[:8]}, not at {target.parent[:8]}",
            hint="Pull, look at the changes, and push without --parent-commit or with the new one.",
        )
    for name in found.files:
        old, new = before.files.get(name), after.files.get(name)
        moved = (old.blob_id if old else None) != (new.blob_id if new else None)
        if moved and not (new is not None and same(found, name, new)):
            raise HubError(
                f"{target.repo}: {name} was changed on {target.revision} during the push",
                hint="Look at that commit; run the same command again to replace the file.",
            )
    if last:
        raise HubError(
            f"{target.repo}: {target.revision} keeps moving ({FRESH_PARENTS + 1} tries)",
            hint="Run the command again when nobody else pushes.",
        )


def _check_published(api: HfApi, found: Contents, target: Target, commit: str) -> None:
    """What the commit holds is what the folder holds."""
    remote = patiently(lambda: look(api, target.repo, commit), "checking")
    for name in found.files:
        there = remote.files.get(name)
        if there is None or not same(found, name, there):
            what = "is missing from" if there is None else "differs in"
            raise HubError(
                f"{target.repo}: {name} {what} commit {commit[:8]}",
                hint="Remove rules for it from the repository's .gitignore, and push again.",
            )


def _result(target: Target, steps: list[Step], commit: str, request: str | None, created: bool) -> Pushed:
    return Pushed(
        repo=target.repo,
        revision=target.revision,
        commit=commit,
        url=f"{constants.ENDPOINT}/{target.repo}/commit/{commit}",
        pull_request=request,
        created=created,
        steps=tuple(steps),
    )
