import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.addresses import without_keys, without_secrets

PRINTED = st.characters(min_codepoint=33, max_codepoint=126)
NAMES = st.text("abcAZ019-._", min_size=1)


def test_a_text_loses_the_keys_of_its_addresses_and_nothing_else():
    for text in (
        "http://host:8000/a@b",
        "http://[::1]:8000/a@b",
        "see https://a.org and write to me@b.org",
        "s3://bucket/time=12:30/a@b.parquet",
        r"C:\a:b@c",
    ):
        assert without_keys(text) == text
    for keys in ("KEY:SECRET", "KEY:SEC/R@ET", "KEY:12/SECRET", "KEY:S@C/RET"):
        for slashes in ("/", "//"):
            text = f"no s3:{slashes}bucket/a: 1"
            assert without_keys(text.replace("bucket", f"{keys}@bucket")) == text
    assert without_keys("(https://TOKEN@host/a)") == "(https://host/a)"
    assert without_keys("HTTPS://TOKEN@host/a") == "HTTPS://host/a"


def test_a_text_loses_the_keys_among_the_options_of_its_addresses():
    said = without_keys("'https://host/a?sig=SECRET&part=1&X-Amz-Signature=SECRET': not found")
    assert said == "'https://host/a?sig=...&part=1&X-Amz-Signature=...': not found"
    assert without_keys("--users s3://b/a?secret_key=SECRET --k 5") == (
        "--users s3://b/a?secret_key=... --k 5"
    )
    for text in ("http://host/a?part=1&b=c", "key=value", "a?b", "monkey=1"):
        assert without_keys(text) == text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("a:b@c?/d", "a:b@c?/d"),  # a path
        ("s3://KEY:SEC/RE/T@bucket/out", "s3://bucket/out"),
        ("s3://KEY:SEC/R@ET@bucket/out", "s3://bucket/out"),
        ("s3://KEY:S@C/RET@bucket/out", "s3://bucket/out"),
        ("s3://KEY:SEC?RET@bucket/a?b=c", "s3://bucket/a"),
        ("s3://KEY:S CRET@bucket/out", "s3://bucket/out"),
        ("s3://KEY:12/SECRET@bucket/out", "s3://bucket/out"),  # no host:port
        ("http://[::1]:8000/a@b", "http://[::1]:8000/a@b"),
        ("ftp://user:SEC@RET@host/out", "ftp://host/out"),
        ("ftp://user:SE/C@RET@host/out", "ftp://host/out"),
        ("https://TOKEN@host/out?key=SECRET", "https://host/out"),
        ("HTTPS://TOKEN@host/out", "HTTPS://host/out"),
        ("simplecache::s3://KEY:SECRET@bucket/out", "simplecache::s3://bucket/out"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("hdfs://host:9000/a@b", "hdfs://host:9000/a@b"),
        ("abfs://container@account.net:443/out", "abfs://container@account.net:443/out"),
        ("s3://bucket/a?endpoint_override=host:9000&scheme=http", "s3://bucket/a"),
    ],
)
def test_an_address_is_shown_without_keys_and_options(address, shown):
    assert without_secrets(address) == shown


@settings(max_examples=200, deadline=None)
@given(NAMES, st.text(PRINTED), NAMES, NAMES)
def test_whatever_a_secret_has_in_it_none_of_it_is_shown(key, secret, bucket, name):
    address = f"s3://{key}:{secret}@{bucket}/{name}"
    assert without_secrets(address) == f"s3://{bucket}/{name}"
    assert without_keys(f"{address}: not found") == f"s3://{bucket}/{name}: not found"
    other = address.replace("s3://", "ftp://").replace(":", ":x", 2)  # not a port
    assert without_secrets(other.replace("ftp:x", "ftp:")) == f"ftp://{bucket}/{name}"
