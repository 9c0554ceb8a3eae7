"""Live streams: nudges come through, nothing is held meanwhile, and one that cannot be had hurts nobody."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.accounts.models import Role
from app.core import live
from app.core.db import engine, transaction
from app.core.settings import Settings
from app.web import live as streams
from tests.web.conftest import Browser, World, make_person


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    """The application behind a real server: the test client cannot read an answer that does not end."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_a_nudge_reaches_whoever_listens(world: World, served: str) -> None:
    cookies = {"tiebreak": world.browser("lead").cookie}
    with httpx.stream("GET", f"{served}/campaigns/{world.campaign}/live", cookies=cookies, timeout=10) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        stop = threading.Event()

        def speak() -> None:  # until somebody has heard it: subscribing takes a moment
            while not stop.wait(0.05):
                with transaction() as session:
                    live.nudge(session, f"campaign:{world.campaign}")

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            assert "event: nudge" in (next(lines) for _ in range(10))
        finally:
            stop.set()
            thread.join()


def test_thirty_open_streams_leave_the_pool_to_the_pages(world: World, served: str) -> None:
    people = [make_person(Role.admin, password=None) for _ in range(4)]
    browsers = [Browser(world.app).sign_in(user) for user in people]
    with ExitStack() as opened:
        client = opened.enter_context(httpx.Client(timeout=10))
        for n in range(30):
            headers = {"Cookie": f"tiebreak={browsers[n % 4].cookie}"}
            stream = client.stream("GET", f"{served}/campaigns/{world.campaign}/live", headers=headers)
            assert opened.enter_context(stream).status_code == 200
        assert sum(streams._streams.values()) == 30
        assert engine().pool.checkedout() == 0  # type: ignore[attr-defined]
        assert engine().pool.size() == 10  # type: ignore[attr-defined]
        page = httpx.get(f"{served}/campaigns/{world.campaign}/rounds", cookies={"tiebreak": browsers[0].cookie})
        assert page.status_code == 200
    deadline = time.monotonic() + 5
    while streams._streams and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not streams._streams  # whoever leaves gives the place back


def test_one_stream_too_many_is_told_not_to_come_back(world: World, served: str) -> None:
    address = f"{served}/campaigns/{world.campaign}/live"
    with ExitStack() as opened:
        client = opened.enter_context(httpx.Client(cookies={"tiebreak": world.browser("lead").cookie}, timeout=10))
        for _ in range(streams.STREAMS_PER_USER):
            assert opened.enter_context(client.stream("GET", address)).status_code == 200
        assert client.get(address).status_code == 204


def read(topic: str, parts: int, **limits: float) -> list[str]:
    """The first parts of a stream."""

    async def collect() -> list[str]:
        found = []
        async for part in streams.relay(topic, **limits):
            found.append(part)
            if len(found) == parts:
                break
        return found

    return asyncio.run(collect())


def test_without_redis_a_stream_stays_open_and_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "settings", lambda: Settings(redis_url="redis://127.0.0.1:1/0"))
    began = time.monotonic()
    assert read("campaign:x", 4, beat=0.05)[1:] == [": beat\n\n"] * 3
    assert time.monotonic() - began < 5


def test_a_stream_ends_after_its_time_however_much_there_is_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chatter(topic: str, seconds: float) -> AsyncIterator[bool]:
        while True:
            await asyncio.sleep(0.01)
            yield True

    monkeypatch.setattr(live, "listen", chatter)
    assert 5 < len(read("campaign:x", 1000, seconds=0.3)) < 100


def test_streams_open_for_those_alone_who_may_see_the_page(world: World) -> None:
    def status(who: str, path: str) -> int:
        return int(world.browser(who).get(path).status_code)

    campaign = f"/campaigns/{world.campaign}/live"
    assert status("anonymous", campaign) == 303
    assert status("foreign lead", campaign) == 404
    for thing in ("rounds", "runs"):
        assert status("lead", f"/{thing}/{uuid.uuid4()}/live") == 404
        assert status("lead", f"/{thing}/nonsense/live") == 404


def test_a_stream_of_somebody_signed_out_gets_a_plain_refusal_and_no_page(world: World) -> None:
    answer = world.browser("anonymous").get(
        f"/campaigns/{world.campaign}/live", headers={"Accept": "text/event-stream"}
    )
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
