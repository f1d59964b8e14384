"""Publishing a run's student on the Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.bundle import Bundle, bundle_run
from hf_kdnas.hub.merge import ASIDE, CARD, merge_cards
from hf_kdnas.hub.record import RECORD
from hf_kdnas.hub.session import (
    LostOnTheWay,
    check_access,
    check_repo_id,
    open_session,
    owned_id,
    patiently,
)
from hf_kdnas.progress import Narrator
from hf_kdnas.run import write_text

# The branch that is taken without `revision`.
MAIN = constants.DEFAULT_REVISION


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repo_id: Where.
        url: Of the commit or pull request; empty where nothing was sent.
        sizes: Bytes by path in the repository.
        notes: What a person should know.
    """

    repo_id: str
    url: str
    sizes: Mapping[str, int]
    notes: tuple[str, ...] = ()


def publish_run(
    run_dir: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    pr: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Publish a finished run's student, with its card, report and record.

    A repository that is there keeps what a person wrote in its card, and files of its own; files
    that an earlier publication made and this one doesn't are deleted. A publication that broke off
    leaves nothing visible; repeated, it sends only what is missing.

    Args:
        run_dir: Folder of the run, which is only read.
        repo_id: NAME or OWNER/NAME; made where there is none.
        private: Make it a private one.
        revision: Branch to commit to, made where there is none; None means main.
        pr: Open a pull request instead.
        dry_run: Only say what would be sent; needs neither network nor token.

    Raises:
        InvalidInput: If the run isn't finished, the token, the name or the card won't do, or the Hub
            can't be reached.
    """
    if dry_run:
        check_repo_id(repo_id)
        bundle = bundle_run(run_dir, repo_id)
        return Publication(repo_id, "", bundle.sizes(), bundle.notes)
    narrator = Narrator()
    target = check_target(repo_id, private=private, pr=pr)
    api, repo_id = target.api, target.repo_id
    bundle = bundle_run(run_dir, repo_id)
    _prepare_repo(target, bundle, private=private, revision=None if pr else revision, narrator=narrator)
    sizes = bundle.sizes()
    narrator.say(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, to {repo_id}")
    commit = _Commit(api, repo_id, revision, pr, bundle, run_dir / ASIDE)
    url = patiently("publishing", commit.send, narrator)
    return Publication(repo_id, url, sizes, (*bundle.notes, *commit.notes))


@dataclass(frozen=True)
class Target:
    """A repository that may be published to, as far as the Hub says so beforehand.

    Attributes:
        api: The Hub.
        repo_id: OWNER/NAME.
        exists: Whether it is there.
    """

    api: HfApi
    repo_id: str
    exists: bool


def check_target(repo_id: str, *, private: bool = False, pr: bool = False) -> Target:
    """See that a repository may be published to; nothing is made there.

    Args:
        repo_id: NAME or OWNER/NAME.
        private: Whether it is to be a private one.
        pr: Whether a pull request is to be opened.

    Raises:
        InvalidInput: If the name or the token won't do, the Hub can't be reached, a pull request is to be
            opened in a repository that isn't there, or one that is public was to be private.
    """
    check_repo_id(repo_id)
    api, narrator = open_session(), Narrator()
    user: dict[str, Any] = patiently("asking who you are", api.whoami, narrator)
    repo_id = owned_id(user, repo_id)
    check_access(user, repo_id, pr=pr)
    found = patiently("looking for the repository", lambda: _find(api, repo_id), narrator)
    if found is None and pr:
        raise InvalidInput(
            "--pr", repo_id, "there is no such repository", "Leave out --pr to make it, or correct its name."
        )
    if found is not None and private and not found.private:
        raise InvalidInput(
            "--private",
            repo_id,
            "the repository is there, and public",
            "Make it private in its settings on the Hub first, or publish it as it is.",
        )
    return Target(api, repo_id, exists=found is not None)


def _prepare_repo(
    target: Target, bundle: Bundle, *, private: bool, revision: str | None, narrator: Narrator
) -> None:
    """See that the repository and its branch are there.

    Raises:
        InvalidInput: If a new one's card has metadata that the Hub won't take.
    """
    api, repo_id = target.api, target.repo_id
    if not target.exists:
        patiently("checking the card", lambda: _validate(api, bundle.card), narrator)
        patiently(
            "making the repository",
            lambda: api.create_repo(repo_id, private=private or None, exist_ok=True),
            narrator,
        )
    if revision not in (None, MAIN) and not str(revision).startswith("refs/"):
        branch = str(revision)
        patiently(
            "making the branch", lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), narrator
        )


def _find(api: HfApi, repo_id: str) -> Any:
    """What the Hub says of a repository; None where there is none."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _validate(api: HfApi, card: str) -> None:
    """Let the Hub look at a card's metadata.

    `ModelCard.validate` does the same, but in huggingface_hub 0 it asks huggingface.co alone.

    Raises:
        InvalidInput: If it won't take them: a licence that it doesn't know, for example.
    """
    answer = get_session().post(
        f"{api.endpoint}/api/validate-yaml", json={"repoType": "model", "content": card}
    )
    try:
        hf_raise_for_status(answer)
    except BadRequestError as error:
        raise _refused_card(error) from error


def _refused_card(error: Exception) -> InvalidInput:
    return InvalidInput(
        CARD,
        "metadata that the Hub won't take",
        " ".join(str(error).split()),
        "Correct them at the top of the card, in the student's folder or on the Hub.",
    )


class _Commit:
    """One commit with everything, made anew for each try.

    Args:
        api: The Hub.
        repo_id: The repository.
        revision: A branch, or None for main.
        pr: Whether to open a pull request.
        bundle: What to send.
        aside: Where a card is kept whose metadata can't be read.

    Attributes:
        notes: What a person should know, from the last try.
    """

    def __init__(
        self, api: HfApi, repo_id: str, revision: str | None, pr: bool, bundle: Bundle, aside: Path
    ) -> None:
        self.api = api
        self.repo_id = repo_id
        self.revision = revision
        self.pr = pr
        self.bundle = bundle
        self.aside = aside
        self.notes: tuple[str, ...] = ()

    def send(self) -> str:
        """Read what is there, merge the card, and commit upon exactly that.

        Where the answer to a commit was lost on the way, the next try finds nothing changed.

        Returns:
            The address of the commit or the pull request.
        """
        head = self.api.model_info(self.repo_id, revision=self.revision, files_metadata=True)
        there = {each.rfilename: each for each in head.siblings or []}
        card = self._card(head.sha, there)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(CARD, card.encode()),
            *(
                CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
                for name, file in self.bundle.files.items()
            ),
            *(CommitOperationDelete(name) for name in self._stale(head.sha, there)),
        ]
        try:
            commit = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message="Publish the student of a run of hf-kdnas",
                revision=self.revision,
                create_pr=self.pr,
                parent_commit=head.sha,
            )
        except ValueError as error:
            if isinstance(error.__cause__, BadRequestError) and CARD in str(error):
                raise _refused_card(error) from error
            raise
        return str(commit.pr_url or commit.commit_url)

    def _card(self, sha: str | None, there: Mapping[str, RepoSibling]) -> str:
        if CARD not in there:
            return self.bundle.card
        older = self._read(there[CARD], sha)
        merged = merge_cards(self.bundle.card, older)
        notes = [f"sections kept in the card: {', '.join(merged.kept)}"] if merged.kept else []
        if merged.invalid:
            write_text(self.aside, older)
            notes.append(
                f"the metadata of the card on the Hub can't be read and are left out ({merged.invalid}); "
                f"that card is kept as {self.aside}"
            )
        self.notes = tuple(notes)
        return merged.text

    def _stale(self, sha: str | None, there: Mapping[str, RepoSibling]) -> list[str]:
        """Files that an earlier publication made, and this one doesn't."""
        if RECORD not in there:
            return []
        text = self._read(there[RECORD], sha)
        try:
            files = json.loads(text)["files"]
        except (ValueError, TypeError, KeyError):
            return []  # another program's file of that name, or one that was edited
        return [name for name in files if name in there and name not in (CARD, *self.bundle.files)]

    def _read(self, file: RepoSibling, sha: str | None) -> str:
        """A file of the repository, as it was committed.

        Raises:
            LostOnTheWay: If something else came.
        """
        with tempfile.TemporaryDirectory() as scratch:
            path = self.api.hf_hub_download(self.repo_id, file.rfilename, revision=sha, local_dir=scratch)
            content = Path(path).read_bytes()
        if file.lfs is not None:
            same = hashlib.sha256(content).hexdigest() == file.lfs["sha256"]
        else:  # as git names it
            same = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id
        if not same:
            raise LostOnTheWay(f"{file.rfilename} came otherwise than it was committed")
        return content.decode()
