"""The Hugging Face hub: download a folder, unless it is on the disk, and publish a folder."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from newsrec.addresses import without_secrets
from newsrec.errors import HubError, UserError
from newsrec.places import looked_for

LONGEST_REASON = 200
"""Most characters quoted from a library's message."""


class Found(NamedTuple):
    """A folder on the disk."""

    path: Path
    within: Path
    """Files of the folder may be links into this folder: the hub's cache stores each file once."""


def find_folder(name: str | Path, revision: str | None, files: Iterable[str]) -> Found:
    """Return a folder, or download one from the hub unless its cache has it.

    Args:
        name: A folder, or the id of a repository on the hub, such as ``me/news``.
        revision: Branch, tag or commit of the repository; None is its main branch.
        files: Names of the files to download.

    Raises:
        HubError: If the repository cannot be read.
        UserError: If it is neither a folder nor a valid id, or a folder is given a revision.
    """
    path = Path(name)
    if path.exists():
        if revision is not None:
            raise UserError(
                f"revision is {revision!r}, but {name} is a folder, which has none. Leave it out."
            )
        return Found(path, path)
    if "://" in str(name):
        raise UserError(
            f"{without_secrets(str(name))} is an address, and an exported folder has to be on a "
            "disk. Copy it there, or name a repository on the Hugging Face hub, such as me/news."
        )
    repo_id = checked_id(name, or_folder=True)
    from huggingface_hub import snapshot_download

    at = "" if revision is None else f" at revision {revision!r}"
    with _asking(f"The repository {repo_id!r}{at} cannot be read from the Hugging Face hub"):
        snapshot = snapshot_download(repo_id, revision=revision, allow_patterns=sorted(files))
    return Found(Path(snapshot), Path(snapshot).parents[1])


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder's files as one commit, and return the address of the commit.

    Args:
        folder: The folder.
        repo_id: The repository, which is made if there is none.
        private: Whether a new repository is private; None leaves it to the account.
        revision: Branch, which is made if there is none; None is the main branch.
        commit_message: The commit's message.

    Raises:
        HubError: If the hub cannot be reached, or refuses the upload.
        UserError: If the id is not valid.
    """
    checked_id(repo_id)
    from huggingface_hub import HfApi

    api = HfApi(library_name="newsrec")
    with _asking(f"Nothing was uploaded to {repo_id!r} on the Hugging Face hub"):
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        repo_id = made.repo_id  # with the name of the account, if that was left out
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Upload a news recommender with newsrec",
        )
    return str(done.commit_url)


def checked_id(name: str | Path, or_folder: bool = False) -> str:
    """Return the id of a repository on the hub; UserError if it cannot be one, nor a folder."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        if not or_folder:
            raise UserError(
                f"{str(name)!r} is no id of a repository on the Hugging Face hub. Give one such as "
                "me/news."
            ) from error
        said = f"There is no folder {name}. {looked_for(Path(name))}".strip()
        raise UserError(
            f"{said} Name a folder, or a repository on the Hugging Face hub, such as me/news."
        ) from error
    return str(name)


@contextmanager
def _asking(said: str) -> Iterator[None]:
    """Turn what the hub's client raises into a HubError that begins with ``said``."""
    from huggingface_hub import errors

    try:
        yield
    except (
        errors.HTTPError,  # of httpx, whose name differs between versions of huggingface_hub
        errors.LocalEntryNotFoundError,
        errors.LocalTokenNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.FileMetadataError,
        getattr(errors, "XetDownloadError", errors.FileMetadataError),  # not in all versions
        json.JSONDecodeError,  # a proxy answered in place of the hub
    ) as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        raise HubError(f"{said} ({_reason(causes[-1])}). {_step(error)}") from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].rstrip(".")
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."


def _step(error: BaseException) -> str:
    """Return what to do about an error of the hub's client."""
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        return (
            "HF_HUB_OFFLINE is set: unset it, or name a folder, or download the repository once "
            "where there is network, by `hf download`."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError | errors.LocalTokenNotFoundError) or status in (
        401,
        403,
    ):
        return (
            "Check the name. For a private or gated repository, or to upload, log in by `hf auth "
            "login` or set HF_TOKEN to a token with that right."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "Name a branch, a tag or a commit that it has, or leave revision out."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "Check the name, or name a folder."
    return (
        "Check the network. Without one, name a folder: `hf download REPOSITORY --local-dir "
        "FOLDER` makes one where there is network."
    )
