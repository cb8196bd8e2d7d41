"""Data folders under nearly the right names: the message has the command that mends them."""

import gzip
import shlex
import shutil
import zipfile

import pytest

from newsrec.data.readers.mind_files import find_splits
from newsrec.data.readers.news_file import read_news
from newsrec.errors import UserError


def refused(root) -> str:
    with pytest.raises(UserError) as error:
        find_splits(root)
    return str(error.value)


def pack(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("news.tsv", "behaviors.tsv"):
            archive.write(folder / name, name)
    shutil.rmtree(folder)


FOLDERS = {
    **{"valid": "dev", "Train": "train", "validation": "dev", "MINDsmall_val": "MINDsmall_dev"},
    **{"eval": "dev", "dev.bak": "dev", "MINDsmall_dev_unzipped": "MINDsmall_dev"},
    **{"train_extracted": "train"},
}
ZIPS = {
    "MINDsmall_train (1).zip": "MINDsmall_train.zip",
    "MINDsmall_train.zip.1": "MINDsmall_train.zip",
    "MINDlarge_dev copy.zip": "MINDlarge_dev.zip",
    "mindsmall_dev.zip": "MINDsmall_dev.zip",
    "valid.zip": "dev.zip",
}


@pytest.mark.parametrize(("name", "right"), [*FOLDERS.items(), *ZIPS.items()])
def test_a_split_under_another_name_is_named_with_the_command_that_mends_it(name, right, mind_dir):
    split = "train" if "rain" in name else "dev"
    if name in FOLDERS:
        (mind_dir / split).rename(mind_dir / name)
    else:
        pack(mind_dir / split, mind_dir / name)
    said = refused(mind_dir)
    command = said.partition("`")[2].partition("`")[0]
    word, source, target = shlex.split(command)
    assert (word, source, target) == ("mv", str(mind_dir / name), str(mind_dir / right))
    shutil.move(source, target)
    assert list(find_splits(mind_dir)) == ["train", "dev", "test"]


def test_a_second_download_beside_the_first_does_no_harm(mind_dir):
    shutil.copytree(mind_dir / "dev", mind_dir / "valid")
    (mind_dir / "MINDsmall_dev (1).zip").write_bytes(b"")
    (mind_dir / "testing").mkdir()  # without any data
    assert list(find_splits(mind_dir)) == ["train", "dev", "test"]


def test_a_split_or_a_folder_above_is_told_from_the_data_folder(mind_dir, monkeypatch):
    assert f"--data.root {mind_dir}." in refused(mind_dir / "train")
    assert f"Did you mean --data.root {mind_dir}?" in refused(mind_dir.parent)
    assert "It is a file: name the folder" in refused(mind_dir / "train" / "news.tsv")
    monkeypatch.chdir(mind_dir.parent)
    wrong = mind_dir.with_name("mnid").relative_to(mind_dir.parent)
    said = refused(wrong)
    assert f"Looked for {mind_dir.parent / 'mnid'}." in said
    assert "Did you mean mind?" in said


@pytest.mark.parametrize(
    ("name", "command"),
    [("news.tsv.gz", "gunzip"), ("news.tsv.txt", "mv"), ("News.tsv", "mv")],
)
def test_a_file_under_another_name_is_named_with_the_command(name, command, mind_dir):
    path = mind_dir / "train" / "news.tsv"
    content = path.read_bytes()
    path.unlink()
    wrong = path.with_name(name)
    wrong.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    said = refused(mind_dir)
    assert f"{mind_dir / 'train'} has no news.tsv." in said
    assert f"`{command} {wrong}" in said


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"ARROW1\0\0ARROW1", "an Arrow file"),
        (gzip.compress(b"N1\tnews", mtime=0), "compressed by gzip"),
        (b"N1\tx\0\0\0\tz", "not a text file"),
        ("N1\tnews".encode("utf-16"), "text in UTF-16"),
    ],
)
def test_news_in_another_format_are_refused_without_their_bytes(content, kind, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is {kind}, not a news.tsv") as error:
        read_news(path)
    assert str(error.value).isprintable()


def test_news_in_a_damaged_parquet_file_are_refused_without_their_bytes(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1\0\0\0PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet") as error:
        read_news(path)
    assert str(error.value).isprintable()


def test_a_zip_within_the_folder_of_its_split_is_named_with_the_command(mind_dir):
    train = mind_dir / "train"
    with zipfile.ZipFile(mind_dir / "MINDsmall_train.zip", "w") as archive:
        for name in ("news.tsv", "behaviors.tsv"):
            archive.write(train / name, name)
            (train / name).unlink()
    (mind_dir / "MINDsmall_train.zip").rename(train / "MINDsmall_train.zip")
    said = refused(mind_dir)
    command = shlex.split(said.partition("`")[2].partition("`")[0])
    assert command == ["unzip", str(train / "MINDsmall_train.zip"), "-d", str(train)]
