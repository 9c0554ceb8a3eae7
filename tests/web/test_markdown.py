"""Hostile text: two walls, each of which has to hold alone."""

import re
import time
from html.parser import HTMLParser

import pytest

from app.web import markdown
from app.web.markdown import ATTRIBUTES, TAGS, render, sanitise, visible

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=//evil.example/x>",
    "<form action=//evil.example><input name=password></form>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example'</style>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='  java\tscript:alert(1)'>x</a>",
    "<p style='background:url(//evil.example)' class=toast id=main>x</p>",
    "<details open ontoggle=alert(1)>x",
    "<video><source onerror=alert(1)></video>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#x0A;script:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/sign-out)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](https://evil.example/beacon.png)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "[![x](https://evil.example/beacon.png)](https://evil.example)",
    "```<script>\nalert(1)\n```",
    '```js" onmouseover="alert(1)\nx\n```',
    "```x class=toast style=color:red\nx\n```",
    "`<img src=x onerror=alert(1)>`",
    '[x](https://e.example "onmouseover=alert(1)")',
    '[x](https://e.example" onmouseover="alert(1))',
    "| a |\n|:-:|\n| <img src=x onerror=alert(1)> |",
    "# <svg/onload=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>alert(1)</script>",
]


class Structure(HTMLParser):
    """Every tag and attribute that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def faults(html: str) -> list[str]:
    found = []
    for tag, attributes in Structure(html).tags:
        if tag not in TAGS:
            found.append(f"<{tag}>")
        for name, value in attributes.items():
            if tag == "a" and name in ("rel", "target"):
                continue
            if name not in ATTRIBUTES.get(tag, set()):
                found.append(f"{tag} {name}")
            if name == "href" and not re.match(r"https?://|mailto:", value or ""):
                found.append(f"href {value}")
            if name == "class" and not re.fullmatch(r"language-[\w+#-]+", value or ""):
                found.append(f"class {value}")
    return found


@pytest.mark.parametrize("payload", HOSTILE)
def test_nothing_active_comes_out_of_both_walls(payload: str) -> None:
    html = str(render(payload))
    assert faults(html) == []
    assert "evil.example/beacon" not in "".join(str(attributes.get("src")) for _, attributes in Structure(html).tags)


@pytest.mark.parametrize("payload", HOSTILE)
def test_the_second_wall_holds_alone(payload: str) -> None:
    """As if the parser had let everything through."""
    assert faults(sanitise(payload)) == []


@pytest.mark.parametrize("payload", HOSTILE)
def test_the_first_wall_holds_alone(payload: str) -> None:
    """As if nothing were cleaned afterwards; only the alignment of table cells and relative links would stay."""
    for tag, attributes in Structure(markdown._parser.render(payload)).tags:
        assert tag in TAGS
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "id")]
        scheme = re.match(r"\s*([a-z]+):", (attributes.get("href") or "").lower())
        assert scheme is None or scheme[1] in ("http", "https", "mailto")


def test_links_say_nothing_about_us_and_open_apart() -> None:
    html = str(render("[x](https://example.org)"))
    assert 'rel="noopener noreferrer nofollow ugc"' in html
    assert 'target="_blank"' in html


def test_ordinary_markdown_looks_as_it_should() -> None:
    html = str(
        render("# Hi\n\n*a* **b** `c`\n\n1. one\n\n```python\nx = 1 < 2\n```\n\n| a |\n|---|\n| b |\n\nline\nbreak")
    )
    for part in ("<h1>Hi</h1>", "<em>a</em>", "<strong>b</strong>", "<ol>", "<td>b</td>", "<br>", "x = 1 &lt; 2"):
        assert part in html
    assert '<code class="language-python">' in html


def test_text_too_long_or_too_tangled_comes_back_as_it_is_and_quickly() -> None:
    for text in ("a" * 70_000, "[" * 20_000, "<script>" * 9_000, "> " * 20_000, "*a " * 20_000, "`" * 30_000 + "a"):
        since = time.process_time()
        html = str(render(text))
        assert time.process_time() - since < 2, text[:10]
        assert faults(html) == []
    assert str(render("[" * 20_000)).startswith("<pre>")


def test_letters_that_cannot_be_seen_are_written_out() -> None:
    assert visible("safe\u202etxt") == "safe⟨U+202E⟩txt"
    assert visible("a\u200bb\ufeffc\u00add\x00e\x1b[0m") == "a⟨U+200B⟩b⟨U+FEFF⟩c⟨U+00AD⟩d⟨U+0000⟩e⟨U+001B⟩[0m"
    assert visible("a\U000e0041b") == "a⟨U+E0041⟩b"
    assert "⟨U+202E⟩" in str(render("```\na\u202eb\n```"))
    assert visible("tab\tand\nline") == "tab\tand\nline"


def test_scripts_and_emoji_that_need_joiners_keep_them() -> None:
    for text in ("می\u200cخواهم", "👩\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "क\u094d\u200dष"):
        assert visible(text) == text
    assert visible("pass\u200dword") == "pass⟨U+200D⟩word"


def test_text_that_is_no_unicode_at_all_breaks_nothing() -> None:
    assert "?" in str(render("a\ud800b"))


def test_the_same_text_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    really = markdown._render
    monkeypatch.setattr(markdown, "_render", lambda text: calls.append(text) or really(text))
    text = f"only here {time.time_ns()}"
    assert render(text) == render(text)
    assert len(calls) == 1


def test_the_cache_forgets_what_was_not_asked_for_lately() -> None:
    cache = markdown._Cache(capacity=10)
    for key in (b"a", b"b", b"c"):
        cache.put(key, "12345")
    assert (cache.get(b"a"), cache.get(b"c")) == (None, "12345")
