import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.cleaning import clean_text, cut, id_problem, plain_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        ("  plain   words \n", "plain words"),
        ("a < b", "a < b"),
        ("I <3 you", "I <3 you"),
        ("if x<y and z>w then", "if x<y and z>w then"),
        ("List<String>", "List<String>"),
        ("<p>One</p><p>Two<br/>three</p>", "One Two three"),
        ("un<b>believ</b>able", "unbelievable"),
        ('<a href="x" title="a > b">link</a>', "link"),
        ("before<script>if (a < b) { alert('<p>') }</script>after", "before after"),
        ("<style>p {color: red}</style>text", "text"),
        ("<script>never closed", ""),
        ("seen<!-- unseen -->", "seen"),
        ("<![CDATA[<p>in a feed</p>]]>", "in a feed"),
        ("R&amp;B &lt;3 &#233; &#xe9;", "R&B <3 é é"),
        ("?a=1&copy=2", "?a=1&copy=2"),
        ("AT&T", "AT&T"),
        ("a&nbsp;\u2003b\u2028c", "a b c"),
        ("nul\0 bell\x07 tab\tline\r\nend", "nul bell tab line end"),
        ("x\ud800y", "x\ufffdy"),
        ("\ud83d\ude00", "\U0001f600"),
        ("e\u0301", "é"),
        ("e\0\u0301", "é"),
        ("&#0;&#xD800;", "\ufffd\ufffd"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw, 1_000) == clean


def test_plain_text_leaves_markup() -> None:
    assert plain_text(" <b>AT&amp;T</b>\n", 100) == "<b>AT&amp;T</b>"


@pytest.mark.parametrize(
    ("value", "max_chars", "kept"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "abc"),
        ("ab cd", 3, "ab"),
        ("ax\u0323y", 2, "a"),  # x and its dot below are one character to the eye, and NFC has no code point for it
        ("a👩\u200d🚀b", 2, "a"),
        ("a👍🏽", 2, "a"),
        ("a" + "\u0316" * 99, 50, "a" + "\u0316" * 49),  # a longer cluster than any writing has
    ],
)
def test_cut_never_tears_a_character(value: str, max_chars: int, kept: str) -> None:
    assert cut(value, max_chars) == kept


@given(st.text(alphabet=st.characters(exclude_categories=())), st.integers(1, 50))
def test_clean_text_is_always_usable(raw: str, max_chars: int) -> None:
    clean = clean_text(raw, max_chars)
    assert len(clean) <= max_chars
    clean.encode()
    assert clean == unicodedata.normalize("NFC", clean)
    assert clean == " ".join(clean.split())
    assert not any(unicodedata.category(character) == "Cc" for character in clean)


@given(st.text(alphabet="abc <>&;é", max_size=30))
def test_text_without_markup_is_only_respaced(raw: str) -> None:
    assert plain_text(raw, 100) == " ".join(raw.split())


@pytest.mark.parametrize(
    "piece", ['<b "', "<script", "<!--", "<![CDATA[", "&#1;", "<a b", "\u0301\u0316", "</p ", " ", "<b '\"", "\ud800"]
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    begin = time.process_time()
    clean_text("x" + piece * 50_000, 8_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("value", ["007", "a/b?c#d", "é", "e\u0301", " ", "../..", "\n", "x" * 256, "é" * 128])
def test_any_utf8_of_256_bytes_is_an_id(value: str) -> None:
    assert id_problem(value) is None


@pytest.mark.parametrize(
    ("value", "word"), [("", "empty"), ("a\0", "NUL"), ("\ud800", "surrogate"), ("é" * 129, "258 bytes")]
)
def test_other_ids_are_refused_with_a_reason(value: str, word: str) -> None:
    assert word in (id_problem(value) or "")
