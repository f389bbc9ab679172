"""The audit of the lock files against a service that speaks OSV's interface."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ops.audit import main, read_pins

ROOT = Path(__file__).parents[2]
LOCK = (
    "good==1.0 \\\n    --hash=sha256:aa\nBad_One[extra]==2.0.post1 ; sys_platform == 'win32' \\\n    --hash=sha256:bb\n"
)

Service = Callable[[Callable[[Any], web.Response]], Awaitable[str]]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """Start services that answer a batch as the test says."""
    runners = []

    async def start(answer: Callable[[Any], web.Response]) -> str:
        async def handle(request: web.Request) -> web.Response:
            assert request.path == "/v1/querybatch"
            return answer(await request.json())

        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock file of two packages."""
    path = tmp_path / "requirements.lock"
    path.write_text(LOCK)
    return path


def advisories(asked: Any) -> web.Response:
    """What the service says of the lock file: one package is bad."""
    bad = {"vulns": [{"id": "GHSA-1", "modified": "2026-01-01T00:00:00Z"}, {"id": "PYSEC-2"}]}
    results = [bad if query["package"]["name"] == "bad-one" else {} for query in asked["queries"]]
    return web.json_response({"results": results})


async def run(lock: Path, url: str, *more: str) -> int:
    """Run the command in a thread, since it waits for a server of this loop."""
    return await asyncio.to_thread(main, [str(lock), "--service", url, *more])


def test_every_pin_of_the_projects_own_lock_files_is_read():
    """Whatever markers it has."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        pins = read_pins(text)
        assert len(pins) == sum("==" in line and not line.startswith((" ", "#")) for line in text.splitlines())
        assert pins["aiohttp"].startswith("3.")


async def test_a_known_vulnerability_fails(service, lock, capsys):
    """By package, version and id, in the service's spelling of names."""
    asked: list[Any] = []
    url = await service(lambda body: asked.append(body) or advisories(body))
    assert await run(lock, url) == 1
    assert "bad-one 2.0.post1: GHSA-1, PYSEC-2" in capsys.readouterr().err
    packages = [{"name": "bad-one", "ecosystem": "PyPI"}, {"name": "good", "ecosystem": "PyPI"}]
    assert [query["package"] for query in asked[0]["queries"]] == packages
    assert [query["version"] for query in asked[0]["queries"]] == ["2.0.post1", "1.0"]


async def test_one_that_is_known_to_be_harmless_can_be_ignored_by_id(service, lock, capsys):
    """And no other with it."""
    url = await service(advisories)
    assert await run(lock, url, "--ignore", "GHSA-1") == 1
    assert await run(lock, url, "--ignore", "GHSA-1", "--ignore", "PYSEC-2") == 0
    assert "2 packages, no known vulnerability that is not ignored" in capsys.readouterr().out


async def test_none_is_said(service, lock, capsys):
    """With how many were looked for."""
    url = await service(lambda asked: web.json_response({"results": [{} for _ in asked["queries"]]}))
    assert await run(lock, url) == 0
    assert "2 packages, no known vulnerability\n" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "broken"])
async def test_where_nobody_can_be_asked_it_says_so_and_does_not_fail(service, lock, capsys, where):
    """Not every machine has a way out; nobody may take it for a clean audit."""
    url = await service(lambda _: web.Response(status=503)) if where == "broken" else where
    assert await run(lock, url) == 0
    assert "could not ask" in (said := capsys.readouterr().out)
    assert "2 packages were NOT checked" in said


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: web.Response(status=400),
        lambda _: web.Response(text="<html>"),
        lambda _: web.json_response({"results": []}),
        lambda _: web.json_response({}),
        lambda asked: web.json_response({"results": [{"vulns": [1]} for _ in asked["queries"]]}),
    ],
    ids=["refused", "no JSON", "too few", "none", "other shape"],
)
async def test_an_answer_that_is_not_understood_fails(service, lock, answer):
    """Else an audit that no longer works would look like a good one."""
    assert await run(lock, await service(answer)) == 1


async def test_a_file_that_pins_nothing_fails(tmp_path):
    """It is the wrong one."""
    (tmp_path / "x.lock").write_text("aiohttp>=3\n")
    assert await run(tmp_path / "x.lock", "http://127.0.0.1:9") == 1
