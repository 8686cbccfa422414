"""Reasons as sentences, in English and in Chinese. They say what was found out and nothing else.

A new source is one line a language in ``_SOURCES``; without it, it is called by its name.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from raysys.types import Cause

T = TypeVar("T")

LANGUAGES = ("en", "zh")
MAX_TITLE_CHARS = 60


class _Lines(NamedTuple):
    """Of a source: what names a cause or words, and what is said where they are not known."""

    named: str
    plain: str = ""


_SOURCES: Mapping[str, Mapping[str, _Lines]] = {
    "en": {
        "query": _Lines("Near what you look for."),
        "profile": _Lines("Because {cause}: this is about something alike.", "Much like what you like."),
        "said": _Lines("Near {cause}.", "Near what you wrote."),
        "query_words": _Lines("Has words of what you look for: {words}.", "Has words of what you look for."),
        "words": _Lines("Because {cause}: both have {words}.", "Has words in common with what you like."),
        "transition": _Lines("Because {cause}: this often comes next.", "Often comes next after what you like."),
        "ridge": _Lines("Because {cause}: the two go together.", "Goes together with what you like."),
        "factors": _Lines("People of your taste like this."),
        "sequence": _Lines("Fits what you did last."),
        "friends": _Lines("People you follow like this."),
        "trending": _Lines("Popular right now."),
        "fresh": _Lines("New here."),
        "popular": _Lines("Popular with many."),
        "": _Lines("Because {cause}.", "Found by {name}."),
    },
    "zh": {
        "query": _Lines("接近你要找的内容。"),
        "profile": _Lines("因为{cause}，内容相近。", "和你喜欢的内容很像。"),
        "said": _Lines("接近{cause}。", "接近你写过的话。"),
        "query_words": _Lines("含有你要找的词：{words}。", "含有你要找的词。"),
        "words": _Lines("因为{cause}，两者都有：{words}。", "和你喜欢的内容有相同的词。"),
        "transition": _Lines("因为{cause}，之后常常会选它。", "常常出现在你喜欢的内容之后。"),
        "ridge": _Lines("因为{cause}，两者相配。", "和你喜欢的内容相配。"),
        "factors": _Lines("和你口味相近的人喜欢它。"),
        "sequence": _Lines("适合接着你最近的选择。"),
        "friends": _Lines("你关注的人喜欢它。"),
        "trending": _Lines("现在很热门。"),
        "fresh": _Lines("新上的。"),
        "popular": _Lines("很多人喜欢。"),
        "": _Lines("因为{cause}。", "由 {name} 找到。"),
    },
}

# What a person did with an item, by the kind of the event; "" is any other.
_EVENTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "view": "you viewed {title}",
        "click": "you clicked on {title}",
        "dwell": "you spent time on {title}",
        "chat": "you talked about {title}",
        "like": "you like {title}",
        "share": "you shared {title}",
        "review": "you reviewed {title}",
        "rating": "you rated {title}",
        "comment": "you commented on {title}",
        "follow": "you follow {title}",
        "add_to_cart": "you put {title} in your cart",
        "purchase": "you bought {title}",
        "": "{title} is in your history",
    },
    "zh": {
        "view": "你看过 {title}",
        "click": "你点开过 {title}",
        "dwell": "你花时间看过 {title}",
        "chat": "你聊过 {title}",
        "like": "你喜欢 {title}",
        "share": "你分享过 {title}",
        "review": "你评价过 {title}",
        "rating": "你给 {title} 打过分",
        "comment": "你评论过 {title}",
        "follow": "你关注了 {title}",
        "add_to_cart": "你把 {title} 放进过购物车",
        "purchase": "你买过 {title}",
        "": "你的记录里有 {title}",
    },
}

# What a person wrote, by the kind of the event; "" is any other.
_TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "search": "what you looked for: “{sentence}”",
        "description": "what you say about yourself: “{sentence}”",
        "": "what you wrote: “{sentence}”",
    },
    "zh": {
        "search": "你找过的“{sentence}”",
        "description": "你对自己的描述“{sentence}”",
        "": "你写过的“{sentence}”",
    },
}

# What a rule of the list did; "cap" and "one_per" stand for all of their kind.
_RULES: Mapping[str, Mapping[str, str]] = {
    "en": {
        "diversity": "Stands here for the sake of variety.",
        "calibration": "Stands here to keep the mix that you like.",
        "promotion": "Stands here because others are promoted.",
        "promoted": "Promoted.",
        "label": "Promoted: {label}.",
        "cap": "Stands here as the list has at most so many items of one {field}.",
        "one_per": "Stands here as the list has one item of each {field}.",
        "": "Stands here by the rule {rule}.",
    },
    "zh": {
        "diversity": "排在这里是为了让列表更多样。",
        "calibration": "排在这里是为了保持你喜欢的比例。",
        "promotion": "排在这里是因为有推广内容。",
        "promoted": "推广。",
        "label": "推广：{label}。",
        "cap": "排在这里是因为同一 {field} 的数量有上限。",
        "one_per": "排在这里是因为每个 {field} 只出现一次。",
        "": "按规则 {rule} 排在这里。",
    },
}

_WITHOUT: Mapping[str, Mapping[str, str]] = {
    "en": {
        "moved": "Without “{what}”, this would be number {rank}.",
        "same": "Without “{what}”, this would still be number {rank}.",
        "gone": "Without “{what}”, this would not be among the first {n}.",
    },
    "zh": {
        "moved": "没有“{what}”，它会排在第 {rank} 位。",
        "same": "没有“{what}”，它仍然排在第 {rank} 位。",
        "gone": "没有“{what}”，它不会进入前 {n} 位。",
    },
}

_COMMA = {"en": ", ", "zh": "、"}


def language_of(wanted: str | None) -> str:
    """The language of sentences for a wish as in BCP 47, such as ``zh-Hant-TW``; English where we do not have it."""
    primary = "" if wanted is None else wanted.replace("_", "-").split("-")[0].casefold()
    return primary if primary in LANGUAGES else "en"


def of_source(name: str, language: str, cause: Cause | None = None, words: Sequence[str] = ()) -> str:
    """What a source says for an item; ``cause`` and ``words``, where known, are named."""
    lines = _of(_SOURCES, language, name)
    missing = ("{cause}" in lines.named and cause is None) or ("{words}" in lines.named and not words)
    said = "" if cause is None else _cause(cause, language)
    listed = _COMMA[language].join(map(_short, words))
    return (lines.plain if missing else lines.named).format(cause=said, words=listed, name=name)


def of_rule(rule: str, language: str) -> str:
    """What a rule of the list did to an item."""
    kind, _, field = rule.partition(":")
    return _of(_RULES, language, kind).format(field=field, rule=rule)


def of_promoted(label: str | None, language: str) -> str:
    """That an item is promoted."""
    return _RULES[language]["promoted" if label is None else "label"].format(label=label)


def without(cause: Cause, rank: int, other: int | None, n: int, language: str) -> str:
    """That an item, now at ``rank``, would stand at ``other`` without this cause; None = not among the first n."""
    kind = "gone" if other is None else "same" if other == rank else "moved"
    return _WITHOUT[language][kind].format(what=_name(cause), rank=other, n=n)


def _of(table: Mapping[str, Mapping[str, T]], language: str, key: str) -> T:
    lines = table[language]
    return lines.get(key, lines[""])


def _cause(cause: Cause, language: str) -> str:
    if cause.item_id is None:
        return _of(_TEXTS, language, cause.kind).format(sentence=_name(cause))
    return _of(_EVENTS, language, cause.kind).format(title=_name(cause))


def _name(cause: Cause) -> str:
    """An item by its title, or by its id where it has none; a text by what it says."""
    return _short(next(name for name in (cause.title, cause.sentence, cause.item_id, "") if name is not None))


def _short(text: str) -> str:
    return text if len(text) <= MAX_TITLE_CHARS else text[: MAX_TITLE_CHARS - 1].rstrip() + "…"
