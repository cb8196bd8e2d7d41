"""Publishes an exported folder on the Hugging Face hub."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from newsrec.hub import upload_folder
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import CARD, CATALOGUE_FILES, MANIFEST


def push(
    folder: ExportFolder | str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    news: bool = False,
) -> str:
    """Upload an exported folder, and return the address of the commit.

    Args:
        folder: The folder.
        repo_id: The repository, which is made if there is none.
        private: Whether a new repository is private; None leaves it to the account.
        revision: Branch, which is made if there is none; None is the main branch.
        commit_message: The commit's message.
        news: Whether to also publish the catalogue: the titles and the vectors of the news. The
            data's licence may forbid it.

    Raises:
        HubError: If the hub cannot be reached, or refuses the upload.
        UserError: If it is not an exported folder, or a file was changed.
    """
    exported = folder if isinstance(folder, ExportFolder) else ExportFolder(folder)
    kept = {
        name: value
        for name, value in exported.manifest["files"].items()
        if news or name not in CATALOGUE_FILES
    }
    with TemporaryDirectory() as copy:
        for name in kept:
            shutil.copyfile(exported.file(name), Path(copy) / name)
        if CARD not in kept and (exported.path / CARD).is_file():
            shutil.copyfile(exported.path / CARD, Path(copy) / CARD)
        text = json.dumps(exported.manifest | {"files": kept}, indent=1)
        (Path(copy) / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return upload_folder(
            Path(copy),
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
        )
