"""A tiny MIND and a tiny language model, small enough to check by hand."""

import atexit
import gc
import json
import os
import pkgutil
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest

# Tests work on small arrays, where a second thread only waits; torch reads this when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # and does not spin while it waits
# What is measured of a machine is kept for its user; no test reads or writes that.
os.environ["NEWSREC_CACHE"] = tempfile.mkdtemp(prefix="newsrec-tests-")
atexit.register(shutil.rmtree, os.environ["NEWSREC_CACHE"], ignore_errors=True)

Rows = Sequence[Sequence[str]]

STAND_INS: dict[str, Callable] = {
    "newsrec.report.closing.draw_curves": lambda *_: None,
    "newsrec.training.progress.curves.draw_curves": lambda *_: None,
    "newsrec.training.progress.throughput.matrix_rate": lambda *_: 1e11,
}
"""What stands in a tiny run for a drawing, and for the measurement of a matrix product."""

NEWS = {
    # id: category, subcategory, title, abstract
    "N1": ("sports", "football", "Underdogs win the cup on the last kick", "A late goal decides."),
    "N2": ("sports", "football", "Coach leaves after three lost games", "The club is looking."),
    "N3": ("sports", "tennis", "Teenager reaches her first final", "She meets the champion."),
    "N4": ("sports", "tennis", "Champion out with an injured wrist", ""),
    "N5": ("finance", "markets", "Shares fall as rates rise again", "Banks lost most."),
    "N6": ("finance", "markets", "Gold climbs for a fifth day", "Buyers fear inflation."),
    "N7": ("finance", "savings", "How to save on your heating bill", "Turn it down by a degree."),
    "N8": ("travel", "cities", "Ten quiet streets in a loud city", "Walk them at dawn."),
    "N9": ("travel", "nature", '"Slow trains" are back, and full', "Night lines reopen."),
    "N10": (
        "travel",
        "nature",
        "Where the café ends and the forest begins — a walk",
        "Bring boots.",
    ),
    "N11": ("weather", "storms", "Storm closes ports along the coast", "Ferries stay in."),
    "N12": ("weather", "storms", "Snow by the weekend, says the office", "Roads may ice."),
    "N13": ("food", "recipes", "A soup for cold evenings", "Leeks, potatoes, time."),
    "N14": ("food", "recipes", "A soup for cold evenings", "The same title, told again."),
    # new in dev
    "N15": ("sports", "football", "Cup winners parade through the rain", "Thousands came."),
    "N16": ("weather", "storms", "Coast counts the cost of the storm", "Ports open again."),
    "N17": ("food", "restaurants", "The last table at the harbour inn", "It closes in May."),
    # new in test
    "N18": ("finance", "markets", "Rates stay where they are", "Markets had hoped."),
    "N19": ("travel", "cities", "A city without cars, for one day", "Children took over."),
    "N20": ("music", "", "", ""),
}
KNOWN_IN = {
    "train": [f"N{i}" for i in range(1, 15)],
    "dev": [f"N{i}" for i in (*range(1, 13), *range(15, 18))],
    "test": [f"N{i}" for i in (*range(3, 15), *range(18, 21))],
}
FAVOURITE = {
    "U1": "sports",
    "U2": "finance",
    "U3": "travel",
    "U4": "weather",
    "U5": "food",
    "U6": "sports",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="where `-m gpu` runs; cpu rehearses those of its tests that a CPU can run",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but ``-m gpu``, also from processes that tests start."""
    if not _on_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported


def _on_gpus(config: pytest.Config) -> bool:
    return "gpu" in config.option.markexpr.replace("not gpu", "")


def pytest_sessionstart() -> None:
    """Look for no garbage while a million objects are imported that stay to the end."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage again, less often than by default and never among what was imported."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_to_look_at() -> Iterator[None]:
    """Leave what a file of tests has imported and cached out of later searches for garbage."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collect_file() -> None:
    """Import Lightning before any test module does.

    typing keeps one of Union[int, float] and Union[float, int] for both: were scikit-learn, which
    has the second, first, a Trainer's option would read 1 as 1.0, all batches instead of one.
    """
    import lightning  # noqa: F401
    import torch

    torch.backends.mps.is_available = lambda: False  # what a Trainer takes by itself is a CPU


@pytest.fixture(autouse=True)
def _variables_of_threads():
    """No test leaves another number of threads to those after it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = [os.environ.get(name) for name in names]
    yield
    assert [os.environ.get(name) for name in names] == before


@pytest.fixture(scope="session", autouse=True)
def left_out() -> Iterator[dict[str, Callable]]:
    """Leave out of runs what takes longer than a tiny run; ``whole_runs`` brings it back."""
    originals = {place: pkgutil.resolve_name(place) for place in STAND_INS}
    with pytest.MonkeyPatch.context() as patch:
        for place, stand_in in STAND_INS.items():
            patch.setattr(place, stand_in)
        yield originals


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[Callable]:
    """Build the parser of ``fit`` once for all tests, and find an option in it once.

    Yields the function that builds it, for tests that change their parser.
    That takes longer than an epoch of a tiny run: jsonargparse searches a list for each option.
    """
    from jsonargparse import _core, _subcommands
    from lightning.pytorch.cli import LightningCLI

    search, known = _subcommands.find_action_and_subcommand, WeakKeyDictionary()

    def find(parser: Any, dest: str, exclude: Any = None) -> tuple:
        found = known.setdefault(parser, {})
        key = (dest, exclude, len(parser._actions))
        if key not in found:
            found[key] = search(parser, dest, exclude)
        return found[key]

    parts = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
    plain, built = LightningCLI.setup_parser, {}

    def setup_parser(cli: LightningCLI, *given: Any) -> None:
        options = (cli.trainer_defaults, cli.seed_everything_default, given)
        kind = (type(cli).add_arguments_to_parser, cli._model_class, cli._datamodule_class)
        key = (*kind, repr(options))
        if key not in built:
            plain(cli, *given)
            built[key] = {name: vars(cli)[name] for name in parts if name in vars(cli)}
        vars(cli).update(built[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "setup_parser", setup_parser)
        for module in (_core, _subcommands):
            patch.setattr(module, "find_action_and_subcommand", find)
        yield plain


@pytest.fixture
def whole_runs(left_out: dict[str, Callable], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs draw their curves and measure a matrix product, as they do for a user."""
    for place, original in left_out.items():
        monkeypatch.setattr(place, original)


def write_mind(
    root: Path,
    news: Mapping[str, Rows],
    behaviors: Mapping[str, Rows],
    line_end: str = "\n",
    last_line_end: bool = True,
) -> Path:
    """Write ``root/SPLIT/news.tsv`` and ``behaviors.tsv`` from rows of fields; return ``root``."""
    for name, splits in (("news.tsv", news), ("behaviors.tsv", behaviors)):
        for split, rows in splits.items():
            text = line_end.join("\t".join(row) for row in rows)
            (root / split).mkdir(parents=True, exist_ok=True)
            path = root / split / name
            path.write_bytes((text + line_end * last_line_end).encode())
    return root


def news_row(news_id: str, category: str, subcategory: str, title: str, abstract: str) -> list[str]:
    """Return the 8 columns of a news item, the last three as MIND writes them."""
    url = f"https://example.org/{news_id}.html"
    return [news_id, category, subcategory, title, abstract, url, "[]", "[]"]


def tiny_news() -> dict[str, list[list[str]]]:
    """News items of each split; N4 has no abstract, and nothing at all behind it."""
    news = {
        split: [news_row(news_id, *NEWS[news_id]) for news_id in ids]
        for split, ids in KNOWN_IN.items()
    }
    for rows in news.values():
        for row in rows:
            if row[0] == "N4":
                row[5:] = ["", "", ""]
    return news


def tiny_behaviors() -> dict[str, list[list[str]]]:
    """Impressions of each split: made ones, in which users click their topic, then awkward ones."""
    awkward = {
        "train": [
            ["U1", "", "N2-0 N3-1 N11-0"],  # empty history
            ["U2", "N5 N404 N6", "N7-1 N8-0"],  # a news item that no news.tsv has
            ["U3", "N404 N405", "N1-0 N9-1 N8-1 N10-1 N12-0"],  # none known; several clicks
            ["U4", "N11 N12 N11 N11", "N12-0 N404-0 N11-1"],  # repeats; an unknown candidate
            ["U5", "N13", "N404-1 N2-0 N13-0"],  # the click itself is unknown
        ],
        "dev": [
            ["U7", "", "N15-0 N16-1"],  # a new user without history
            ["U1", "N3 N404 N1 N3", "N15-1 N404-0 N5-0"],
            ["U2", "N5", "N6-0 N7-0 N8-0"],  # no click
            ["U3", "N9", "N8-1 N10-1"],  # all clicked
            ["U4", "N11 N16", "N11-1"],  # one candidate
        ],
        "test": [
            ["U8", "", "N18 N19 N20"],
            ["U1", "N3 N404 N4", "N404 N18"],
            ["U2", "N5 N5", "N19"],  # one candidate
        ],
    }
    behaviors = {}
    number = 0
    for split, made, day in (("train", 36, 11), ("dev", 18, 15), ("test", 12, 16)):
        rows = _made_impressions(split, made) + awkward[split]
        behaviors[split] = []
        for i, (user, history, candidates) in enumerate(rows):
            number += 1
            time = f"11/{day}/2019 {i % 12 + 1}:0{i % 7}:5{i % 10} {'AP'[i % 2]}M"
            behaviors[split].append([str(number), user, time, history, candidates])
    return behaviors


def _made_impressions(split: str, number: int) -> list[list[str]]:
    """Return user, history and candidates; a user's history is the same throughout a split."""
    rng = random.Random(f"mind {split}")
    topics = {
        topic: [n for n in KNOWN_IN[split] if NEWS[n][0] == topic] for topic in FAVOURITE.values()
    }
    histories = {
        user: [rng.choice(topics[topic]) for _ in range(rng.randrange(1, 6))]
        for user, topic in FAVOURITE.items()
        if topics[topic]
    }
    rows = []
    for i in range(number):
        user = list(histories)[i % len(histories)]
        wanted = topics[FAVOURITE[user]]
        clicked = rng.sample(wanted, min(len(wanted), 1 + (i % 4 == 0)))
        others = [n for n in KNOWN_IN[split] if n not in wanted]
        skipped = rng.sample(others, rng.randrange(1, 8))
        labels = dict.fromkeys(clicked, 1) | dict.fromkeys(skipped, 0)
        shown = rng.sample(list(labels), len(labels))
        words = shown if split == "test" else [f"{n}-{labels[n]}" for n in shown]
        rows.append([user, " ".join(histories[user]), " ".join(words)])
    return rows


@pytest.fixture
def mind_dir(tmp_path: Path) -> Path:
    """A tiny MIND: train and dev with labels, test without."""
    return write_mind(tmp_path / "mind", tiny_news(), tiny_behaviors())


@pytest.fixture(scope="session")
def plm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers and its tokenizer, as ``from_pretrained`` wants them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("plm")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    titles = normalizer.normalize_str(" ".join(" ".join(news) for news in NEWS.values()))
    words = {word for word, _ in splitter.pre_tokenize_str(titles)}
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789")
    pieces = sorted(words | letters) + sorted(f"##{letter}" for letter in letters)
    vocab = {piece: i for i, piece in enumerate(special + pieces)}

    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    settings |= dict(zip(names, special, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")

    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def plm_copy(plm_dir: Path, tmp_path: Path) -> Path:
    """A copy of ``plm_dir``, to be spoiled."""
    return Path(shutil.copytree(plm_dir, tmp_path / "plm"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of ``-m gpu``; tests are skipped where the machine lacks it."""
    import torch

    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here; `--device cpu` rehearses")
    return name


@pytest.fixture(scope="session")
def only_cuda(device: str) -> None:
    """Skip what only a GPU can show."""
    if device != "cuda":
        pytest.skip("only a GPU can show this")


SMALL = [
    "--model.dim=16",
    "--model.news={heads: 2, ffn: 16}",
    "--model.user={heads: 2, ffn: 16}",
    "--data.max_tokens=12",
    "--model.precision=fp32",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
]


def fit_options(mind_dir, plm_dir, output):
    return [
        "fit",
        f"--data.root={mind_dir}",
        f"--model.plm={plm_dir}",
        f"--output={output}",
        "--trainer.max_epochs=2",
        *SMALL,
    ]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on the PATH; on Debian, apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def refused(capsys, *argv):
    """Run a command that must exit with 2; return what it said."""
    from newsrec.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def docs_block(page: str, marker: str) -> str:
    """Return the block of Python in ``docs/PAGE`` that holds ``marker``."""
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (found,) = [block for block in blocks if marker in block]
    return found


@pytest.fixture(scope="session")
def served(plm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run, its scores by evaluate, and its export with the news of train and dev.

    An export takes 20 s, so one process of pytest-xdist writes it for all; copy it to change it.
    """
    import serving_world
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / "served", root / "served.done"
    with FileLock(root / "served.lock"):
        if not done.exists():
            serving_world.write_served(folder, plm_dir)
            done.touch()
    return serving_world.read_served(folder)


@pytest.fixture(scope="session")
def exported_encoders(served: SimpleNamespace) -> tuple:
    """The model of ``served``, the folder of its encoders, to be copied, and their errors."""
    from newsrec.training.module import RecommenderModule

    module = RecommenderModule.load_from_checkpoint(served.best, map_location="cpu").eval()
    manifest = json.loads((served.export / "manifest.json").read_text(encoding="utf-8"))
    return module, served.encoders, manifest["largest_errors"]


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let live recommenders encode as ``live_world`` does."""
    from live_world import FakeEncoders

    monkeypatch.setattr("newsrec.serving.engine.Encoders", FakeEncoders)
    monkeypatch.setattr(FakeEncoders, "encoded", 0)


@pytest.fixture
def opened() -> Iterator[Callable]:
    """``LiveRecommender.open``; what a test opens is closed after it."""
    from newsrec.serving.live import LiveRecommender

    found = []

    def open_one(*args: Any, **options: Any) -> LiveRecommender:
        found.append(LiveRecommender.open(*args, **options))
        return found[-1]

    yield open_one
    for live in found:
        live.close()
