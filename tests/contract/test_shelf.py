"""The shelf on real files: what changes is taken as a whole, what is bad is refused, and what held before holds."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.config import Settings
from relay.rulebook.book import Rulebook
from relay.rulebook.shelf import Shelf
from tests.support.fleet import until

SECRET = "hunter2-" * 4
ENV = {"RELAY_JWT_SECRET": f"{SECRET}v", "RELAY_UPSTREAM_URL": "ws://model.example/v1", "RELAY_REGION": "iad"}
LOOK = 0.05  # seconds; nobody waits for two in a test


def calls(number: int) -> str:
    return f"[plans.default]\nconcurrent_calls = {number}\n"


def limit(shelf: Shelf) -> int | None:
    plan = shelf.current().plan_for("anybody", None)
    return plan and plan.concurrent_calls


class Files:
    """A folder with the files of a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = folder / "relay.toml"
        self.book.write_text(calls(1))

    def shelf(self, **env: str) -> Shelf:
        settings = Settings.from_env({**ENV, "RELAY_CONFIG": str(self.book), **env})
        return Shelf(settings.sources, settings.rulebook, look_seconds=LOOK)

    @asynccontextmanager
    async def watched(self, **env: str) -> AsyncIterator[Shelf]:
        """A shelf that watches, and has read its files once."""
        shelf = self.shelf(**env)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(shelf.watch())
            await until(lambda: shelf.outcomes["loaded"] == 1)
            yield shelf
            task.cancel()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_reload_takes_what_the_files_say_now(files):
    """Agents, plans, keys and secrets: all of it, at once."""
    secrets, key = files.folder / "secrets", files.folder / "key"
    secrets.write_text(f"{SECRET}1")
    key.write_text("k1")
    shelf = files.shelf(RELAY_JWT_SECRET_FILE=str(secrets), RELAY_UPSTREAM_KEY_FILE=str(key))
    before = shelf.current()
    files.book.write_text(calls(2) + "[agents.new]\nmodel = 'm'\n")
    secrets.write_text(f"{SECRET}2\n{SECRET}1")
    key.write_text("k2")
    assert shelf.reload()
    after = shelf.current()
    assert limit(shelf) == 2
    assert after.agents["new"].model == "m"
    assert after.jwt_secrets == (f"{SECRET}2", f"{SECRET}1", f"{SECRET}v")
    assert after.upstreams["default"].headers == (("Authorization", "Bearer k2"),)
    assert before.upstreams["default"].headers == (("Authorization", "Bearer k1"),)
    assert before.jwt_secrets == (f"{SECRET}1", f"{SECRET}v")


def test_an_upstreams_key_is_read_beside_the_rulebook_and_again(files):
    """A relative name means the rulebook's folder, wherever the node was started."""
    files.book.write_text("[upstreams.azure]\nurl = 'wss://a.example'\nkey_file = 'azure.key'\n")
    (files.folder / "azure.key").write_text("k1\n")
    shelf = files.shelf()
    assert shelf.current().upstreams["azure"].headers == (("Authorization", "Bearer k1"),)
    (files.folder / "azure.key").write_text("k2\n")
    assert shelf.reload()
    assert shelf.current().upstreams["azure"].headers == (("Authorization", "Bearer k2"),)


def test_a_key_comes_from_the_variable_that_the_rulebook_names(files):
    """But never from one that holds another secret of the relay: the upstream would learn it."""
    files.book.write_text("[upstreams.azure]\nurl = 'wss://a.example'\nkey_env = 'AZURE_KEY'\n")
    shelf = files.shelf(AZURE_KEY="k1")
    assert shelf.current().upstreams["azure"].headers == (("Authorization", "Bearer k1"),)
    for name in ("RELAY_JWT_SECRET", "RELAY_MEMORY_KEYS", "RELAY_REGIONS", "REDIS_URL"):
        files.book.write_text(files.book.read_text().rpartition("key_env")[0] + f"key_env = '{name}'\n")
        assert not shelf.reload()


def spoilt(files: Files) -> list[tuple[str, int | None, Path]]:
    """Every way to spoil a file: its text, the line of the mistake, and the file that is named."""
    book, secrets, key = files.book, files.folder / "secrets", files.folder / "key"
    return [
        ("[plans.default]\nconcurrent_call = 3", 2, book),
        ("[plans.default]\nconcurrent_calls = ", 2, book),
        ("[agents.x]\nupstream = 'gone'", 2, book),
        (f"[upstreams.x]\nurl = 'wss://h'\nkey_env = '{SECRET}'", 3, book),
        (f"[upstreams.x]\nurl = 'wss://h'\nkey_file = '{SECRET}'", 3, book),
        ("[plans.default]\n# \udcff", 2, book),
        (f"{SECRET}\n{SECRET[:20]}", 2, secrets),
        ("", None, secrets),
        ("", None, key),
        (f"{SECRET} {SECRET}", None, key),
    ]


@pytest.mark.parametrize("case", range(10))
def test_a_bad_file_is_refused_with_its_line_and_changes_nothing(files, case):
    """Not even what is good in the others; and what is said of it shows no secret."""
    secrets, key = files.folder / "secrets", files.folder / "key"
    secrets.write_text(f"{SECRET}1")
    key.write_text("k1")
    shelf = files.shelf(RELAY_JWT_SECRET_FILE=str(secrets), RELAY_UPSTREAM_KEY_FILE=str(key))
    before = shelf.current()
    text, line, file = spoilt(files)[case]
    good = file.read_text()
    for other in {files.book, secrets, key} - {file}:
        other.write_text({files.book: calls(9), secrets: f"{SECRET}9", key: "k9"}[other])
    file.write_text(text, errors="surrogateescape")
    with capture_logs() as said:
        assert not shelf.reload()
    assert shelf.current() is before
    assert shelf.is_stale
    assert shelf.outcomes == {"loaded": 0, "refused": 1}
    [entry] = said
    assert (entry["event"], entry["file"], entry["line"]) == ("rulebook_refused", str(file), line)
    assert SECRET not in str(said)
    file.write_text(good)
    assert shelf.reload()
    assert not shelf.is_stale


def test_a_file_that_is_gone_or_no_file_changes_nothing(files):
    """And a pipe does not keep the node waiting for somebody who writes into it."""
    shelf = files.shelf()
    files.book.unlink()
    assert not shelf.reload()
    os.mkfifo(files.book)
    assert not shelf.reload()
    files.book.unlink()
    files.book.mkdir()
    assert not shelf.reload()
    files.book.rmdir()
    files.book.write_text("#" * 5_000_000)
    assert not shelf.reload()
    assert limit(shelf) == 1


async def test_a_change_is_taken_without_a_signal(files):
    """Whether the file is written in place or put in its place."""
    async with files.watched() as shelf:
        files.book.write_text(calls(2))
        await until(lambda: limit(shelf) == 2)
        other = files.folder / "other"
        other.write_text(calls(3))
        other.replace(files.book)
        await until(lambda: limit(shelf) == 3)


async def test_a_change_of_a_key_or_a_secret_is_taken_without_a_signal(files):
    """Keys are rotated by whoever owns the vault, not by who owns the node."""
    secrets, key = files.folder / "secrets", files.folder / "azure.key"
    secrets.write_text(f"{SECRET}1")
    key.write_text("k1")
    files.book.write_text("[upstreams.azure]\nurl = 'wss://a.example'\nkey_file = 'azure.key'\n")
    async with files.watched(RELAY_JWT_SECRET_FILE=str(secrets)) as shelf:
        secrets.write_text(f"{SECRET}2")
        await until(lambda: shelf.current().jwt_secrets == (f"{SECRET}2", f"{SECRET}v"))
        key.write_text("k2")
        await until(lambda: shelf.current().upstreams["azure"].headers == (("Authorization", "Bearer k2"),))


async def test_a_swapped_link_is_a_change(files):
    """Kubernetes mounts a ConfigMap as links through `..data`, which it replaces by a rename."""
    for number in (1, 2, 3):
        (files.folder / f"..{number}").mkdir()
        (files.folder / f"..{number}" / "relay.toml").write_text(calls(number))
    files.book.unlink()
    (files.folder / "..data").symlink_to("..1")
    files.book.symlink_to("..data/relay.toml")
    async with files.watched() as shelf:
        for number in (2, 3):
            (files.folder / "..new").symlink_to(f"..{number}")
            (files.folder / "..new").replace(files.folder / "..data")
            shutil.rmtree(files.folder / f"..{number - 1}")
            await until(lambda number=number: limit(shelf) == number)
        assert shelf.outcomes["refused"] == 0


async def test_a_file_is_refused_once_and_taken_when_it_is_mended(files):
    """Not at every look: the log would be full of it."""
    async with files.watched() as shelf:
        with capture_logs() as said:
            files.book.write_text("[plans.default]\nconcurrent_calls = ")
            await until(lambda: shelf.is_stale)
            await asyncio.sleep(10 * LOOK)  # nothing happens, which nothing announces
            assert shelf.outcomes["refused"] == 1
            files.book.write_text(calls(2))
            await until(lambda: limit(shelf) == 2)
        assert [entry["event"] for entry in said] == ["rulebook_refused", "rulebook_loaded"]


async def test_a_missing_key_file_is_waited_for(files):
    """The volumes of a pod are not updated in one go: the rulebook may be there before the key that it names."""
    async with files.watched() as shelf:
        files.book.write_text("[upstreams.azure]\nurl = 'wss://a.example'\nkey_file = 'azure.key'\n")
        await until(lambda: shelf.is_stale)
        (files.folder / "azure.key").write_text("k1")
        await until(lambda: "azure" in shelf.current().upstreams)


async def test_a_file_that_is_being_written_is_left_alone_until_it_is_whole(files):
    """Half a file may be good TOML, with half of the plans and agents missing."""
    async with files.watched() as shelf:
        with files.book.open("w", buffering=1) as file:
            for number in range(10):
                file.write(f"[agents.a{number}]\nmodel = 'm'\n")
                await asyncio.sleep(0.05)
        await until(lambda: len(shelf.current().agents) > 1)
        assert len(shelf.current().agents) == 11  # and "default"
        assert shelf.outcomes == {"loaded": 2, "refused": 0}


async def test_a_signal_reads_the_files_at_once_also_if_they_seem_unchanged(files):
    """The operator asked, and sees in the log that it was done."""
    settings = Settings.from_env({**ENV, "RELAY_CONFIG": str(files.book)})
    shelf = Shelf(settings.sources, settings.rulebook, look_seconds=60.0)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(shelf.watch())
        for times in (1, 2, 3):
            shelf.ask()
            await until(lambda times=times: shelf.outcomes["loaded"] >= times, seconds=5.0)
        files.book.write_text(calls(2))
        shelf.ask()
        await until(lambda: limit(shelf) == 2, seconds=5.0)
        task.cancel()


async def test_a_rulebook_is_one_or_the_other_and_never_half(files):
    """Whoever asks while it is swapped gets a whole one: agent, plan and key of the same file."""

    def text(number: int) -> str:
        return (
            calls(number)
            + f"[agents.x]\nmodel = 'm{number}'\nupstream = 'u{number}'\n[upstreams.u{number}]\nurl = 'ws://h'\n"
        )

    def is_whole(found: Rulebook) -> bool:
        number = found.plans["default"].concurrent_calls
        agent = found.agents["x"]
        return agent.model == f"m{number}" and agent.upstreams == (f"u{number}",) and f"u{number}" in found.upstreams

    files.book.write_text(text(1))
    shelf, over, seen = files.shelf(), threading.Event(), set()

    def reader() -> None:
        while not over.is_set():
            found = shelf.current()
            seen.add((found.plans["default"].concurrent_calls, is_whole(found)))

    async with asyncio.TaskGroup() as tasks:
        reading = asyncio.create_task(asyncio.to_thread(reader))
        watching = tasks.create_task(shelf.watch())
        for number in range(2, 30):
            other = files.folder / "other"
            other.write_text(text(number))
            other.replace(files.book)
            shelf.ask()
            await until(lambda number=number: limit(shelf) == number)
        over.set()
        await reading
        watching.cancel()
    assert {whole for _, whole in seen} == {True}
    assert len(seen) > 5
