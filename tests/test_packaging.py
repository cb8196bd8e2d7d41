import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_an_installed_newsrec_has_all_its_data_files():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["newsrec"]
    package = REPOSITORY / "newsrec"
    found = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file()}
    assert found == {path for path in files if path.suffix not in (".py", ".pyc")}
