"""Texts as words, and items as terms: what is compared letter by letter, beside what the language model says."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

# Han, kana and hangul: written without spaces or inflected at the end, so single characters and pairs stand for words.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_CJK_CHARACTER = re.compile(rf"[{_CJK}]")

READ = ("title", "text", "categories", "tags")  # their words are terms
WHOLE = ("categories", "tags", "owner_id")  # their values are terms


def words(text: str) -> list[str]:
    """The words of a text, case and width folded, in order; each CJK character is one."""
    return _WORD.findall(_folded(text))


def spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end, as it is written."""
    return [match.span() for match in _WORD.finditer(text)]


def is_cjk(word: str) -> bool:
    """Whether this word is one CJK character."""
    return _CJK_CHARACTER.match(word) is not None


def text_terms(text: str) -> Iterator[str]:
    """The words of a text, and the pairs of its neighbouring CJK characters."""
    found = words(text)
    yield from found
    if text.isascii():
        return
    for one, other in pairwise(found):
        if is_cjk(one) and is_cjk(other):
            yield one + other


def item_terms(fields: Mapping[str, Any], attributes: Collection[str] = ()) -> Counter[str]:
    """How often each term is in an item: the words of what it says, and its categories, tags, owner and those of its
    ``attributes`` that are texts, whole: ``field=value``. fields: plain values by name; lists hold texts."""
    terms: Counter[str] = Counter()
    for name in READ:
        for value in _texts(fields.get(name)):
            terms.update(text_terms(value))
    for name in (*WHOLE, *attributes):
        terms.update(whole_term(name, value) for value in _texts(fields.get(name)))
    return terms


def whole_term(name: str, value: str) -> str:
    """The term that says that a field has this value."""
    return f"{name}={_folded(value)}"


def as_written(term: str, fields: Mapping[str, Any]) -> str:
    """A term of an item as people read it: ``categories=drama`` is ``Drama``, and ``brand=acme`` is ``brand: Acme``."""
    name, is_whole, value = term.partition("=")
    if not is_whole:
        return term
    written = next((text for text in _texts(fields.get(name)) if _folded(text) == value), value)
    return written if name in READ else f"{name}: {written}"


def without_parts(terms: Sequence[str]) -> list[str]:
    """These terms but for those that are a part of another: a word of a whole value, a character of a pair."""
    parts = {part for term in terms for part in text_terms(term.partition("=")[2] or term) if part != term}
    return [term for term in terms if term not in parts]


def _texts(value: Any) -> list[str]:
    """The texts in a value: a text, or those in a list; what is none says nothing here."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
