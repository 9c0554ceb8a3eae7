"""The one renderer of text that others wrote: prompts, completions, guidelines, comments. All of it is hostile.

Two walls, each of which holds alone: markdown-it without HTML, then nh3 with a short list of what may pass. No images
(they would tell a stranger's server who reads what, and when), no styles, no ids. Letters that cannot be seen, or that
turn the reading order round, are written out: they could move a judgement without anybody noticing.

The only module of the project that marks a string as safe HTML (a test looks).
"""

import hashlib
import re
from collections import OrderedDict
from threading import Lock

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

MAX_LENGTH = 64_000
MAX_BRACKETS = 1_000
"""Unclosed brackets cost the parser time that grows with their square: 20,000 of them a second."""

_parser = MarkdownIt("js-default", {"linkify": False, "breaks": True}).disable("image")

_TAG_NAMES = "p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li table thead tbody tr th td a"
TAGS = set(_TAG_NAMES.split())
ATTRIBUTES = {"a": {"href", "title"}, "code": {"class"}, "ol": {"start"}}

# C0 and C1 controls but for tab and line ends, soft hyphen, zero-width and direction marks, invisible operators,
# interlinear marks, tag letters. Joiners inside emoji and inside scripts that need them are left alone below.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"


def render(text: str) -> Markup:
    """Markdown as safe HTML; a text too long or too tangled to parse comes back as it is, in a `pre`."""
    key = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    if (html := _cache.get(key)) is None:
        html = _render(text)
        _cache.put(key, html)
    return Markup(html)


def visible(text: str) -> str:
    """The text with every letter that cannot be seen written out, such as `⟨U+202E⟩`. Plain text, to be escaped."""
    return _HIDDEN.sub(_mark, text.encode(errors="replace").decode())


def _render(text: str) -> str:
    text = visible(text.replace("\r\n", "\n").replace("\r", "\n"))
    if len(text) > MAX_LENGTH or text.count("[") > MAX_BRACKETS:
        return f"<pre>{escape(text)}</pre>"
    return sanitise(_parser.render(text))


def sanitise(html: str) -> str:
    """The second wall: HTML with nothing in it but what the lists above allow."""
    return nh3.clean(
        html,
        tags=TAGS,
        clean_content_tags={"script", "style"},
        attributes=ATTRIBUTES,
        attribute_filter=_attribute,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow ugc",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        generic_attribute_prefixes=None,
        strip_comments=True,
    )


def _attribute(tag: str, name: str, value: str) -> str | None:
    """Links lead away from here or nowhere; a code block may say its language."""
    if name == "href":
        return value if re.match(r"(https?://|mailto:)", value, re.IGNORECASE) else None
    if name == "class":
        return value if re.fullmatch(r"language-[A-Za-z0-9+#_-]{1,30}", value) else None
    if name == "start":
        return value if re.fullmatch(r"\d{1,9}", value) else None
    return value


def _mark(match: re.Match[str]) -> str:
    letter, text = match[0], match.string
    if letter in _JOINERS:
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if before and after and _joins(before) and _joins(after):
            return letter
    return f"⟨U+{ord(letter):04X}⟩"


def _joins(letter: str) -> bool:
    """Arabic and Indic letters, and emoji with what modifies them, are written with joiners."""
    code = ord(letter)
    return 0x0600 <= code <= 0x0DFF or code in (0xFE0F, 0x2640, 0x2642, 0x2764) or 0x1F000 <= code <= 0x1FAFF


class _Cache:
    """The latest renderings by content, up to a number of letters in all. Shared by threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size, self.lock = capacity, 0, Lock()
        self.kept: OrderedDict[bytes, str] = OrderedDict()

    def get(self, key: bytes) -> str | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def put(self, key: bytes, html: str) -> None:
        with self.lock:
            self.size += len(html) - len(self.kept.pop(key, ""))
            self.kept[key] = html
            while self.size > self.capacity:
                self.size -= len(self.kept.popitem(last=False)[1])


_cache = _Cache(capacity=16_000_000)
