"""Text as people meant it: without markup, control characters and broken code points. Ids are left as they are."""

import html
import re
import unicodedata

MAX_ID_BYTES = 256

# Only names that HTML knows are tags, so "x<y and z>w" and "List<String>" survive.
_INLINE = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd mark q rp rt ruby s samp small span strike"
    " strong sub sup time tt u var wbr"
)
_BLOCK = (
    "address applet area article aside audio base basefont blockquote body br button canvas caption center col colgroup"
    " datalist dd details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4"
    " h5 h6 head header hgroup hr html iframe img input label legend li link main map menu meta meter nav noframes"
    " noscript object ol optgroup option output p param picture pre progress script section select slot source style"
    " summary svg table tbody td template textarea tfoot th thead title tr track ul video"
)


def _tags(names: str) -> re.Pattern[str]:
    # Quoted attribute values may hold ">"; the bound keeps a quote that is never closed from being searched for ever.
    attributes = r"""(?:[\s/](?:[^<>"']|"[^"]{0,2000}"|'[^']{0,2000}')*+)?"""
    return re.compile(rf"</?(?:{names.replace(' ', '|')}){attributes}>", re.IGNORECASE)


_INLINE_TAG = _tags(_INLINE)
_BLOCK_TAG = _tags(_BLOCK)
_UNSEEN = re.compile(
    r"<(script|style)\b[^<>]*>.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<!doctype\b[^<>]*>|<\?xml\b[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)(?:\]\]>|\Z)", re.DOTALL)
# With their semicolon only: "?a=1&copy=2" holds no copyright sign.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_SPACES = "\t\n\v\f\r\x85"
_CONTROLS = {code: " " if chr(code) in _SPACES else None for code in (*range(0x20), *range(0x7F, 0xA0))}
_HAS_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Joins what follows to what stands before it: zero-width joiner, variation selectors, skin tones.
_JOINERS = re.compile("[\u200d\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")
_LONGEST_CLUSTER = 32
_LONG_RUN = re.compile("([\u0300-\u036f]{30})[\u0300-\u036f]+")


def clean_text(value: str, max_chars: int) -> str:
    """Readable text of at most ``max_chars`` code points, in NFC, without markup or control characters.

    Tags go (a block tag leaves a space), with what scripts, styles and comments hold; entities become characters;
    lone surrogates become U+FFFD; whitespace of any kind and length becomes one space.
    """
    return plain_text(_without_markup(value) if "<" in value or "&" in value else value, max_chars)


def plain_text(value: str, max_chars: int) -> str:
    """``clean_text`` for what is not prose: markup and entities stay."""
    if _HAS_CONTROL.search(value):
        value = value.translate(_CONTROLS)
    value = " ".join(value.split())
    if not value.isascii():
        # Composing takes time with the square of a run of marks, and makes at most three characters into one.
        value = _LONG_RUN.sub(r"\1", _whole_characters(value[: 4 * max_chars]))
        value = unicodedata.normalize("NFC", value)
    return cut(value, max_chars)


def cut(value: str, max_chars: int) -> str:
    """The first ``max_chars`` code points or a few fewer, so that no accent or emoji sequence is torn apart."""
    if len(value) <= max_chars:
        return value
    end = max_chars
    while end > max(0, max_chars - _LONGEST_CLUSTER) and _joined(value[end - 1], value[end]):
        end -= 1
    if _joined(value[end - 1], value[end]):  # no writing has so long a cluster: cut it
        end = max_chars
    return value[:end].rstrip()


def id_problem(value: str) -> str | None:
    """Why this cannot be an id, in words; None when it can. Ids are 1 to 256 bytes of UTF-8 without NUL, else free."""
    if not value:
        return "it is empty"
    if "\0" in value:
        return "it holds a NUL character"
    if _SURROGATE.search(value):
        return "it holds a lone surrogate, which UTF-8 cannot write"
    n_bytes = len(value.encode())
    return f"it has {n_bytes} bytes, and {MAX_ID_BYTES} are the most" if n_bytes > MAX_ID_BYTES else None


def _without_markup(value: str) -> str:
    value = _CDATA.sub(r"\1", value)
    value = _UNSEEN.sub(" ", value)
    value = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", value))
    return _ENTITY.sub(lambda match: html.unescape(match[0]), value)


def _whole_characters(value: str) -> str:
    """The same text with surrogate pairs joined and lone surrogates as U+FFFD."""
    if not _SURROGATE.search(value):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _joined(left: str, right: str) -> bool:
    return left == "\u200d" or unicodedata.combining(right) > 0 or _JOINERS.match(right) is not None
