"""Downloads MIND's zips from their official source, and checks them before they appear.

Since October 2025 the source is a gated dataset on the Hugging Face hub. The zips are not unpacked:
``prepare`` reads them as they are, they take a third of the space of their contents, and a zip that
is not unpacked cannot write files elsewhere. A zip is downloaded into ``ROOT/.download``. If a run
breaks off, the next run continues from there. The zip is moved to ``ROOT`` after a check that reads
it completely: each member's checksum, and the numbers of lines.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from newsrec.console import counted
from newsrec.data.cache import digest
from newsrec.data.readers import official
from newsrec.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DATASET = "yjw1029/MIND"
PAGE = f"https://huggingface.co/datasets/{DATASET}"
LICENCE = "MIND has the Microsoft Research licence: non-commercial research, no redistribution."
READ = f"Read https://msnews.github.io and {PAGE}"
AGREE = f"Open {PAGE}, log in, click to agree and access the repository"
MAKE_TOKEN = "Make a token of type Read on https://huggingface.co/settings/tokens"
SET_TOKEN = "export HF_TOKEN=hf_...    (or: hf auth login)"

RETRIES = 4
"""How often a connection that brings no data is tried again, after 1, 2, ... seconds."""


class Remote(NamedTuple):
    """A zip on the hub."""

    name: str
    url: str
    revision: str
    size: int
    partial: Path
    """Where it is downloaded; its folder is named by the content, so two builds never mix."""

    @property
    def done(self) -> int:
        """Bytes already downloaded by an earlier run."""
        return self.partial.stat().st_size if self.partial.is_file() else 0


def download(size: str, root: Path, again: str) -> None:
    """Download the zips of one size into a folder; those already there are checked and kept.

    ``again`` is the command that messages tell the user to run again. Raises UserError if the hub
    refuses, the network fails, the disk has too little space, or a file is not MIND's.
    """
    from filelock import FileLock, Timeout

    names = [name for name in official.LINES if name.startswith(f"MIND{size}_")]
    aside = root / ".download"
    with _mistakes_explained(root, again):
        missing = [name for name in names if not _is_there(root, name)]
        if not missing:
            return
        remotes = _ask_for(missing, aside)
        print(f"From {PAGE}, revision {remotes[0].revision}:", flush=True)
        aside.mkdir(parents=True, exist_ok=True)
        needed, free = sum(r.size - r.done for r in remotes), shutil.disk_usage(aside).free
        if needed > free:
            raise UserError(
                f"{root} has {_megabytes(free)} free; {', '.join(missing)} need "
                f"{_megabytes(needed)}. Make room or choose another --data.root."
            )
        try:
            with FileLock(aside / "lock", timeout=0):
                for remote in remotes:
                    _fetch(remote, root)
        except Timeout:
            raise UserError(f"Another download is writing to {root}. Wait for it.") from None
        shutil.rmtree(aside, ignore_errors=True)


def _is_there(root: Path, name: str) -> bool:
    try:
        place = official.check(root, name)
    except UserError as error:
        raise UserError(f"{error} Move or delete it, or choose another --data.root.") from None
    if place:
        print(f"{name}: already there as {place}, {_counted(name)}", flush=True)
    return place is not None


def _ask_for(names: list[str], aside: Path) -> list[Remote]:
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    remotes, revision = [], "main"
    for name in names:
        url = hf_hub_url(DATASET, f"{name}.zip", repo_type="dataset", revision=revision)
        about = get_hf_file_metadata(url, token=get_token() or False)
        if not (about.commit_hash and about.etag and about.size):
            raise UserError(
                f"{url} does not answer as the Hugging Face hub does. Is a proxy or a login page "
                "in between, or HF_ENDPOINT wrong?"
            )
        revision = about.commit_hash  # the same for all files
        url = hf_hub_url(DATASET, f"{name}.zip", repo_type="dataset", revision=revision)
        partial = aside / digest(about.etag) / f"{name}.zip"  # the name that the reader expects
        remotes.append(Remote(name, url, revision, about.size, partial))
    return remotes


def _fetch(remote: Remote, root: Path) -> None:
    name, partial = remote.name, remote.partial
    resumed = f", {_megabytes(remote.done)} already here" if remote.done else ""
    print(f"{name}.zip: {_megabytes(remote.size)}{resumed}", flush=True)
    partial.parent.mkdir(exist_ok=True)
    try:
        _append_rest(remote)
        official.check(partial.parent, name)
    except UserError as error:
        partial.unlink()
        raise UserError(f"{error} It was deleted: run the command again.") from None
    partial.replace(root / partial.name)
    print(f"{name}.zip: {_counted(name)}", flush=True)


def _append_rest(remote: Remote) -> None:
    # Not hf_hub_download: later versions of it delete what a failed run has downloaded.
    from huggingface_hub import constants, get_session, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

    headers = build_hf_headers(token=get_token() or False) | {"Accept-Encoding": "identity"}
    how: dict[str, Any] = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    shown = {"desc": remote.partial.name, "total": remote.size, "unit": "B", "unit_scale": True}
    idle = 0
    with (
        remote.partial.open("ab") as file,
        tqdm(initial=file.tell(), **shown, disable=None) as bar,  # type: ignore[no-untyped-call]
    ):
        while (done := file.tell()) < remote.size:
            headers["Range"] = f"bytes={done}-"
            try:
                with get_session().stream("GET", remote.url, **how) as response:
                    hf_raise_for_status(response)
                    if response.status_code != 206:  # the whole file, not the rest
                        file.seek(0)
                        file.truncate()
                        bar.reset()
                    for chunk in response.iter_raw():
                        file.write(chunk)
                        bar.update(len(chunk))
            except HfHubHTTPError as error:
                if error.response.status_code != 416:
                    raise
                break  # the file on the hub is shorter than announced
            except HTTPError:  # connection lost: go on at once if it brought data
                idle = 0 if file.tell() > done else idle + 1
                if idle > RETRIES:
                    raise
                time.sleep(idle)
            else:
                if file.tell() == done:
                    break
        if done != remote.size:
            raise UserError(
                f"{remote.partial.name} has {counted(done, 'byte')}, not {remote.size:,}."
            )


@contextmanager
def _mistakes_explained(root: Path, again: str) -> Iterator[None]:
    """Turn errors of the hub, the network and the disk into a UserError with the next step."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    token = get_token()
    if token and not re.fullmatch("[!-~]+", token):
        raise UserError(f"{_token_name()} is no token.{numbered(MAKE_TOKEN, SET_TOKEN, again)}")
    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(f"HF_HUB_OFFLINE forbids the network. Unset it and run: {again}") from None
    except HfHubHTTPError as error:
        raise UserError(_refusal(error, token, again)) from error
    except HTTPError as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"There is no connection to {constants.ENDPOINT}, or it broke off ({reason}). What has "
            f"arrived is kept. Run again: {again}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{root} cannot be used: {error}. Correct that or choose another --data.root."
        ) from error


def _refusal(error: "HfHubHTTPError", token: str | None, again: str) -> str:
    response = error.response
    status, said = response.status_code, response.headers.get("X-Error-Message", "no reason given")
    gated = response.headers.get("X-Error-Code") == "GatedRepo"
    if status == 401 and not token:
        why = "The hub gives MIND only to users who accepted its licence, and there is no token."
        return why + numbered(AGREE, MAKE_TOKEN, SET_TOKEN, again)
    if status == 401:
        why = f"The hub refused {_token_name()}: mistyped, expired or revoked? ({said})"
        return why + numbered(MAKE_TOKEN, SET_TOKEN, again)
    if status == 403 and gated:
        why = f"The token is good, but its account may not read MIND yet ({said})."
        return why + numbered(f"{AGREE}; the token's account must be the one that agrees", again)
    if status == 403:
        why = f"The hub knows the token, but it may not read MIND ({said})."
        fine = "a fine-grained one needs 'Read access to contents of all public gated repos ...'"
        return why + numbered(AGREE, f"{MAKE_TOKEN}; {fine}", SET_TOKEN, again)
    if status == 404:
        return f"The hub has no {response.url} ({said}). Has the dataset moved? See {PAGE}"
    return f"The hub answered {status} for {response.url} ({said}). Run again later: {again}"


def _token_name() -> str:
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`"


def numbered(*steps: str) -> str:
    """Return steps for the user as text, each on its own line with a number."""
    return "".join(f"\n  {i}. {step}" for i, step in enumerate(steps, start=1))


def _counted(name: str) -> str:
    news, behaviors = official.LINES[name]
    return f"checked: {counted(behaviors, 'impression')}, {counted(news, 'news item')}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
