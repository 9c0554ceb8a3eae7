"""Chromium against the real web process, which is a process of its own: it can be killed and started again."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import Engine

from app.accounts import sessions
from app.accounts.models import User
from app.core.db import ROOT, transaction
from app.core.settings import Settings

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


class WebProcess:
    """uvicorn on a port of its own, as `tiebreak up` runs it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, **environment, "TIEBREAK_URL": self.url}
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["uvicorn", "--factory", "app.main:create_app", "--port", str(self.port), "--no-access-log"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                httpx.get(f"{self.url}/livez", timeout=2).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        pytest.fail(f"The web process did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """As a crash would: without a word."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def web_process(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    given = {
        "DATABASE_URL": environment.database_url,
        "REDIS_URL": environment.redis_url,
        "TIEBREAK_DATA": str(environment.data),
    }
    process = WebProcess(given, tmp_path_factory.mktemp("web") / "web.log")
    process.start()
    yield process
    process.kill()


@pytest.fixture
def web(web_process: WebProcess, committing: Engine) -> WebProcess:
    """The running web process, on a database that is emptied afterwards."""
    if web_process.process is None:
        web_process.start()
    return web_process


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        yield opened
        opened.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, web: WebProcess) -> Iterator[OpenPage]:
    """`open_page(user, "/path", phone=True)`: a signed-in page. It fails the test if a script or the policy fails."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def note(message: object) -> None:
        # A server that is away, and an answer that it refuses, are what some tests are about.
        text = str(getattr(message, "text", message))
        if getattr(message, "type", "error") == "error" and not re.search(r"Failed to load resource|ERR_", text):
            faults.append(text)

    def open_page(user: User, path: str = "/", *, phone: bool = False, script: bool = True, **options: object) -> Page:
        context = chromium.new_context(
            viewport=PHONE if phone else WIDE,
            has_touch=phone,
            is_mobile=phone,
            java_script_enabled=script,
            base_url=web.url,
            **options,  # type: ignore[arg-type]
        )
        contexts.append(context)
        with transaction() as session:
            secret = sessions.start(session, user)
        context.add_cookies([{"name": "tiebreak", "value": secret, "url": web.url}])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", note)
        page.on("console", note)
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, f"The browser complained: {faults}"
