"""The design system keeps its promises: readable colours in every theme, and no colour outside the tokens."""

import re

import pytest

from app.core.db import ROOT

TOKENS = (ROOT / "static/tokens.css").read_text()
MORE = TOKENS[TOKENS.index("prefers-contrast: more") : TOKENS.index("prefers-reduced-motion")]
SURFACES = ("ground", "surface", "sunken")
TEXTS = ("text", "text-soft", "accent", "success", "warning", "danger")


def palette(theme: int, contrast: bool) -> dict[str, str]:
    """Token to colour; theme 0 is light, 1 dark."""
    base = TOKENS.replace(MORE, "")
    found = {}
    for source in (base, MORE) if contrast else (base,):
        for name, value in re.findall(r"--([\w-]+): (light-dark\([^;]*\)|#[0-9a-f]{6});", source):
            colours = re.findall(r"#[0-9a-f]{6}", value)
            if colours:
                found[name] = colours[theme % len(colours)]
    return found


def contrast_ratio(first: str, second: str) -> float:
    """As WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("contrast", "least"), [(False, 4.5), (True, 7.0)], ids=["usual", "high contrast"])
def test_text_can_be_read_on_every_surface(theme: int, contrast: bool, least: float) -> None:
    colours = palette(theme, contrast)
    pairs = [(text, surface) for text in TEXTS for surface in SURFACES]
    pairs += [("text-soft", "hover"), ("on-accent", "accent-fill"), ("on-accent", "accent-fill-hover")] * (not contrast)
    pairs += [("on-accent", "danger-fill"), ("on-accent", "danger-fill-hover")] * (not contrast)
    pairs += [(name, f"{name}-soft") for name in ("accent", "success", "warning", "danger")]
    pairs += [("text", f"{name}-soft") for name in ("accent", "success", "warning", "danger")]
    for text, surface in pairs:
        ratio = contrast_ratio(colours[text], colours[surface])
        wanted = 4.5 if surface.endswith("-soft") else least
        assert ratio >= wanted, f"{text} on {surface}: {ratio:.2f}"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_edge_of_a_field_can_be_seen(theme: int) -> None:
    colours = palette(theme, contrast=False)
    for surface in SURFACES:
        assert contrast_ratio(colours["line-strong"], colours[surface]) >= 3


def test_style_sheets_name_no_colour_of_their_own() -> None:
    for path in (ROOT / "static").glob("*.css"):
        if path.name != "tokens.css":
            found = re.findall(r"#[0-9a-fA-F]{3,8}\b(?![^{]*\{)|\brgba?\(|\bhsl\(|\boklch\(", path.read_text())
            assert not found, f"{path.name}: {found}"
