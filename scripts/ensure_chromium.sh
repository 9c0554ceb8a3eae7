#!/bin/sh
# See to it that the browser tests have a Chromium: $CHROMIUM, the system's, Playwright's, or one installed now.
set -eu
cd "$(dirname "$0")/.."

usable() { # whether $1 is a browser that starts
    [ -n "$1" ] && [ -x "$1" ] && "$1" --version >/dev/null 2>&1
}

playwrights() { # where Playwright's own Chromium is, if it is there
    .venv/bin/python -c 'from playwright.sync_api import sync_playwright as p
with p() as run: print(run.chromium.executable_path)' 2>/dev/null || true
}

if [ -n "${CHROMIUM:-}" ]; then
    usable "$CHROMIUM" || { echo "tiebreak: CHROMIUM=$CHROMIUM does not start: name another, or unset it." >&2; exit 1; }
    exit 0
fi
usable /usr/bin/chromium && exit 0
usable "$(playwrights)" && exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
    echo "Installing Debian's chromium for the browser tests …"
    export DEBIAN_FRONTEND=noninteractive
    { $as_root apt-get update -qq && $as_root apt-get install -qq -y --no-install-recommends chromium fonts-liberation; } \
        >/dev/null || true
    usable /usr/bin/chromium && exit 0
fi
echo "Installing Playwright's Chromium for the browser tests …"
.venv/bin/playwright install chromium || true
usable "$(playwrights)" && exit 0
echo "tiebreak: the browser tests need Chromium and neither apt-get nor Playwright could install it:" \
    "install it by hand, or name one with CHROMIUM=/path/to/chromium." >&2
exit 1
