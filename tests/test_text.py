import numpy as np
import pyarrow as pa
import pytest
from conftest import NEWS, news_row, tiny_behaviors, write_mind
from tokenizers import Tokenizer, models, pre_tokenizers

from newsrec.data import FIRST_NEWS, text
from newsrec.data import fields as news_fields
from newsrec.data.dataset import open_mind
from newsrec.data.fields import news_texts
from newsrec.data.text import tokenize_catalogue
from newsrec.errors import UserError

FIELDS = ("category", "subcategory", "title")


@pytest.fixture
def data(mind_dir):
    return open_mind(mind_dir)


@pytest.fixture(scope="module")
def tokenizer_json(plm_dir):
    return (plm_dir / "tokenizer.json").read_text(encoding="utf-8")


def news_table(*news):
    columns = zip(*news, strict=True)
    return pa.table(dict(zip(news_fields.FIELDS, map(list, columns), strict=True)))


def one_by_one(data, fields, max_tokens, tokenizer_json):
    """Tokenise each news item alone, rows 0 and 1 empty."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokens = [[], []]
    for news_id in data.news["news_id"].to_pylist():
        item = dict(zip(news_fields.FIELDS, NEWS[news_id], strict=True))
        tokenizer.enable_truncation(max_tokens)
        tokens.append(tokenizer.encode(" ".join(item[f] for f in fields if item[f])).ids)
    return tokens


# news_texts


def test_a_text_is_its_fields_in_the_order_asked_for():
    news = news_table(("sports", "tennis", "A final", "She won."))
    assert news_texts(news, FIELDS).to_pylist() == ["sports tennis A final"]
    assert news_texts(news, ("abstract", "title")).to_pylist() == ["She won. A final"]
    assert news_texts(news, ["title"]).to_pylist() == ["A final"]


def test_empty_fields_and_spare_spaces_leave_one_space():
    news = news_table(
        ("music", "", "", ""),
        ("", "", "  A  title\t with\u00a0space ", "x"),
        ("", "", "", ""),
    )
    assert news_texts(news, FIELDS).to_pylist() == ["music", "A title with\u00a0space", ""]


def test_quotes_and_accents_stay_as_they_are(data):
    titles = news_texts(data.news, ["title"]).to_pylist()
    assert '"Slow trains" are back, and full' in titles
    assert "Where the café ends and the forest begins — a walk" in titles


@pytest.mark.parametrize(
    ("fields", "named"), [(["title", "body"], "'body'"), ([], "an empty list"), ("title", "'t'")]
)
def test_unknown_fields_are_refused_by_name(data, fields, named):
    with pytest.raises(UserError, match=r"data\.fields") as error:
        news_texts(data.news, fields)
    assert named in str(error.value)
    assert "category, subcategory, title, abstract" in str(error.value)


# tokenize_catalogue


@pytest.mark.parametrize("fields", [FIELDS, ("title",), ("title", "abstract")])
@pytest.mark.parametrize("max_tokens", [3, 8, 48])
def test_tokens_are_those_of_the_tokenizer_one_news_item_at_a_time(
    data, tokenizer_json, fields, max_tokens
):
    expected = one_by_one(data, fields, max_tokens, tokenizer_json)
    found = tokenize_catalogue(data, fields, max_tokens, tokenizer_json)
    assert found.token_ids.shape == (data.num_news, max_tokens)
    assert found.token_lengths.tolist() == [len(tokens) for tokens in expected]
    padded = [tokens + [0] * (max_tokens - len(tokens)) for tokens in expected]
    assert found.token_ids.tolist() == padded
    assert max(found.token_lengths) == max_tokens or max_tokens == 48


def test_a_cut_text_keeps_its_special_tokens(data, tokenizer_json):
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids = tokenize_catalogue(data, ("title",), 4, tokenizer_json).token_ids[FIRST_NEWS].tolist()
    assert [tokenizer.id_to_token(i) for i in ids] == ["[CLS]", "underdogs", "win", "[SEP]"]


def test_padding_and_cuts_that_a_tokenizer_file_asks_for_are_ignored(data, tokenizer_json):
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(5)
    found = tokenize_catalogue(data, FIELDS, 48, tokenizer.to_str())
    plain = tokenize_catalogue(data, FIELDS, 48, tokenizer_json)
    assert found.token_lengths.tolist() == plain.token_lengths.tolist()
    assert found.token_ids.tolist() == plain.token_ids.tolist()


def test_first_is_the_lowest_row_with_the_same_tokens(data, tokenizer_json):
    for fields, max_tokens in ((FIELDS, 32), (("title",), 3), (("title", "abstract"), 32)):
        found = tokenize_catalogue(data, fields, max_tokens, tokenizer_json)
        rows = [tuple(row) for row in found.token_ids.tolist()]
        expected = [0, 1, *(rows.index(row, FIRST_NEWS) for row in rows[FIRST_NEWS:])]
        assert found.first.tolist() == expected
    rows = {news_id: FIRST_NEWS + i for i, news_id in enumerate(data.news["news_id"].to_pylist())}
    found = tokenize_catalogue(data, FIELDS, 32, tokenizer_json)
    assert found.first[rows["N14"]] == rows["N13"]  # the same title
    found = tokenize_catalogue(data, ("abstract",), 32, tokenizer_json)
    assert found.first[rows["N20"]] == rows["N4"]  # neither has an abstract
    assert found.token_lengths[rows["N4"]] == 2


def test_first_finds_titles_that_differ_only_before_tokenising(tmp_path, tokenizer_json):
    titles = ["Gold climbs", "Shares fall", "GOLD  climbs ", "shares fall", "Gold climbs"]
    rows = [news_row(f"N{i}", "a", "b", title, "") for i, title in enumerate(titles)]
    shown = {"train": [["1", "U1", "11/11/2019 9:05:58 AM", "", "N0-1 N1-0"]]}
    data = open_mind(write_mind(tmp_path / "mind", {"train": rows}, shown))
    found = tokenize_catalogue(data, ("title",), 8, tokenizer_json)
    assert found.first.tolist() == [0, 1, 2, 3, 2, 3, 2]


def test_a_last_token_numbered_0_is_not_taken_for_padding(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"!": 0, "gold": 1}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = [news_row(f"N{i}", "", "", title, "") for i, title in enumerate(["gold", "gold !"])]
    shown = {"train": [["1", "U1", "11/11/2019 9:05:58 AM", "", "N0-1 N1-0"]]}
    data = open_mind(write_mind(tmp_path / "mind", {"train": rows}, shown))
    found = tokenize_catalogue(data, ("title",), 4, tokenizer.to_str())
    assert found.token_lengths.tolist() == [0, 0, 1, 2]
    assert found.first.tolist() == [0, 1, 2, 3]


def test_texts_longer_than_a_chunk_of_news_are_all_read(data, tokenizer_json, monkeypatch):
    monkeypatch.setattr(text, "CHUNK", 3)
    found = tokenize_catalogue(data, FIELDS, 48, tokenizer_json)
    expected = one_by_one(data, FIELDS, 48, tokenizer_json)
    for ids, length, tokens in zip(found.token_ids, found.token_lengths, expected, strict=True):
        assert ids[:length].tolist() == tokens


# the cache


def test_the_second_call_reads_files_and_tokenises_nothing(data, tokenizer_json, monkeypatch):
    first = tokenize_catalogue(data, FIELDS, 16, tokenizer_json)

    def refuse(*args):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(text, "_tokenize", refuse)
    second = tokenize_catalogue(data, list(FIELDS), 16, tokenizer_json)
    assert first.views is second.views is None
    for a, b in zip(first[:3], second[:3], strict=True):
        assert a.dtype == b.dtype
        assert a.tolist() == b.tolist()
    with pytest.raises(AssertionError, match="tokenised again"):
        tokenize_catalogue(data, FIELDS, 17, tokenizer_json)


def test_settings_and_news_have_their_own_tokens(data, tokenizer_json, mind_dir):
    other = Tokenizer.from_str(tokenizer_json)
    other.add_tokens(["underdogs"])
    for arguments in (
        (FIELDS, 16, tokenizer_json),
        (FIELDS, 17, tokenizer_json),
        (FIELDS[::-1], 16, tokenizer_json),
        (FIELDS[:2], 16, tokenizer_json),
        (FIELDS, 16, other.to_str()),
    ):
        tokenize_catalogue(data, *arguments)
    assert len(list(data.cache.parent.glob("tokens-*"))) == 5

    news = [news_row("N1", "sports", "football", "Another title", "")]
    write_mind(mind_dir, {"train": news}, {"train": tiny_behaviors()["train"]})
    changed = tokenize_catalogue(open_mind(mind_dir), ("title",), 16, tokenizer_json)
    before = tokenize_catalogue(data, ("title",), 16, tokenizer_json)
    assert changed.token_ids[FIRST_NEWS].tolist() != before.token_ids[FIRST_NEWS].tolist()


def test_a_killed_writer_leaves_nothing_that_is_believed(data, tokenizer_json, monkeypatch):
    save, saved = np.save, []

    def save_one(path, array):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_one)
        with pytest.raises(KeyboardInterrupt):
            tokenize_catalogue(data, FIELDS, 16, tokenizer_json)
    assert saved
    found = tokenize_catalogue(data, FIELDS, 16, tokenizer_json)
    assert found.token_lengths.tolist() == list(
        map(len, one_by_one(data, FIELDS, 16, tokenizer_json))
    )


@pytest.mark.parametrize("damage", ["missing", "cut", "all gone"])
def test_a_folder_copied_by_half_is_made_anew(data, tokenizer_json, damage):
    whole = tokenize_catalogue(data, FIELDS, 16, tokenizer_json)
    (folder,) = data.cache.parent.glob("tokens-*")
    for path in [folder / "token_ids.npy"] if damage != "all gone" else folder.iterdir():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            path.unlink()
    again = tokenize_catalogue(data, FIELDS, 16, tokenizer_json)
    assert again.token_ids.tolist() == whole.token_ids.tolist()
    assert len(list(folder.iterdir())) == 4  # the seal, too
