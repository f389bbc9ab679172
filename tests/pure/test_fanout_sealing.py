"""What is sealed opens where it was put, with a key that is known, and nowhere else; and what a key may look like."""

import base64

import pytest

from fanout.core.keys import Keys
from fanout.core.memory import Memory
from fanout.core.scripts import Scripts
from fanout.core.seals import CLEAR, open_facts
from fanout.errors import Unsealable
from fanout.sealing import Seal, read_memory_keys
from fanout.settings import BusSettings

OLD, NEW = {"k1": b"1" * 32}, {"k2": b"2" * 32}
CALL, OTHER = "rtc_iad_one", "rtc_iad_two"
WORDS = b'{"text":"my card number is 4711"}'


@pytest.mark.parametrize("value", [b"", b"x", WORDS, bytes(range(256)) * 80], ids=["empty", "one", "some", "20 KB"])
def test_what_is_sealed_is_unreadable_and_comes_back(value):
    """Each time it is sealed it looks different, so that nobody sees what didn't change."""
    seal = Seal(NEW).of(CALL)
    one, two = seal.seal("item.00000001", value), seal.seal("item.00000001", value)
    assert one[:4] == b"\0\x02k2"
    assert len(one) == len(two) == 4 + 12 + len(value) + 16
    assert one[4:] != two[4:]
    assert len(value) < 4 or value not in one
    assert seal.open("item.00000001", one) == seal.open("item.00000001", two) == value


def test_after_a_rotation_the_first_key_seals_and_all_open():
    """Give the new key to every node as the second; then as the first; then, when no call is so old, alone."""
    before, both, after = Seal(OLD), Seal({**NEW, **OLD}), Seal(NEW)
    kept = before.of(CALL).seal("usage", WORDS)
    assert both.of(CALL).open("usage", kept) == WORDS
    assert both.of(CALL).seal("usage", WORDS)[2:4] == b"k2"
    with pytest.raises(Unsealable, match="key 'k1' is not known"):
        after.of(CALL).open("usage", kept)
    assert (before.failures, both.failures, after.failures) == (0, 0, 1)


@pytest.mark.parametrize("keys", [{}, OLD], ids=["without keys", "with keys"])
def test_clear_values_pass(keys):
    """Of calls that began before there was a key, and of fleets that have none."""
    assert Seal(keys).of(CALL).open("usage", WORDS) == WORDS
    assert Seal({}).of(CALL).seal("usage", WORDS) == WORDS


def test_a_value_opens_in_no_other_place():
    """Who can write to Redis must not give one call another's words, or swap what was said."""
    seal = Seal(OLD)
    kept = seal.of(CALL).seal("item.00000001", WORDS)
    for call, name in ((CALL, "item.00000002"), (OTHER, "item.00000001")):
        with pytest.raises(Unsealable, match="another place"):
            seal.of(call).open(name, kept)


def test_a_damaged_value_or_a_wrong_key_is_an_error_and_counted():
    """Never something else than was sealed, and no other error."""
    seal = Seal(OLD)
    kept = seal.of(CALL).seal("usage", WORDS)
    flipped = [kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :] for place in range(1, len(kept))]
    for wrong in [*flipped, *(kept[:length] for length in range(1, len(kept)))]:
        with pytest.raises(Unsealable):
            seal.of(CALL).open("usage", wrong)
    assert seal.failures == 2 * (len(kept) - 1)
    with pytest.raises(Unsealable):
        Seal({"k1": b"3" * 32}).of(CALL).open("usage", kept)
    with pytest.raises(Unsealable):
        CLEAR.of(CALL).open("usage", kept)


def test_facts_that_cannot_be_opened_are_left_out():
    """The rest is still of use to a reader, and to a new owner."""
    seal = Seal(NEW)
    kept = [
        (b"session", seal.of(CALL).seal("session", b"s")),
        (b"usage", Seal(OLD).of(CALL).seal("usage", b"u")),
        (b"dropped", b"1"),
    ]
    assert open_facts(seal.of(CALL), kept) == {"session": b"s", "dropped": b"1"}
    assert seal.failures == 1


def test_facts_are_sealed_on_their_way_to_redis():
    """Their names aren't: which of them there are is no secret."""
    settings = BusSettings(node="n", region="iad", regions={"iad": "redis://unused"}, memory_keys=NEW)
    scripts = Scripts(settings, Seal(settings.memory_keys))
    facts = {"usage": WORDS, "item.00000001": None}
    run = scripts.log(
        Keys("relay").call(CALL, "acme"), 1, "c", batch=None, lowest="", sound=None, facts=facts, number=1
    )
    assert {"usage", "item.00000001"} <= set(run.args)
    assert not any(WORDS in arg for arg in run.args if isinstance(arg, bytes))
    assert "2222" not in repr(settings)


def test_the_memory_list_is_sealed_once_and_read_by_the_next_owner():
    """A repeat of a write must be the same bytes, or the script would take it for another entry."""
    memory = Memory(10, 10_000, Seal({**OLD, **NEW}).of(CALL))
    place = memory.add("item_1", WORDS)
    assert place is not None
    assert memory.packed == [place.packed]
    assert WORDS not in place.packed
    assert memory.entries == [WORDS]
    clear = Memory(10, 10_000).add("item_2", b"said before there was a key")
    assert clear is not None
    sealed_anew = Memory(10, 10_000, Seal(NEW).of(CALL)).add("item_3", b"later")
    assert sealed_anew is not None

    kept = [place.packed, clear.packed, sealed_anew.packed]
    for keys, entries in (
        ({**NEW, **OLD}, [WORDS, b"said before there was a key", b"later"]),
        (NEW, [b"said before there was a key", b"later"]),
        ({}, [b"said before there was a key"]),
    ):
        taken = Memory(10, 10_000, Seal(keys).of(CALL))
        taken.restore(3, kept)
        assert taken.entries == entries
        assert taken.total == 3
    moved = Memory(10, 10_000, Seal({**NEW, **OLD}).of(OTHER))
    moved.restore(1, [place.packed])
    assert moved.entries == []


def test_keys_are_read_in_their_order():
    """The first one seals."""
    encoded = [base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
    assert read_memory_keys("") == read_memory_keys(" , ") == {}
    found = read_memory_keys(f" new:{encoded[0]} ,old-1:{encoded[1]},")
    assert list(found.items()) == [("new", b"\1" * 32), ("old-1", b"\2" * 32)]


SECRET = base64.b64encode(b"s" * 32).decode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SECRET, "key 1: expected id:base64"),
        (f"{SECRET}:k1", "key 1: expected id:base64"),
        (f"k1:{SECRET},{SECRET}", "key 2: expected id:base64"),
        (f"k1:{SECRET},k1:{SECRET}", "key 2: its id is there twice"),
        (f"k1:{SECRET[:-1]}", "key 1: is not base64"),
        (f"k1:{SECRET}!", "key 1: is not base64"),
        (f"k1:{SECRET}é", "key 1: is not base64"),
        (f"k1:{base64.b64encode(b's' * 16).decode()}", "key 1: must be 32 bytes"),
    ],
    ids=[
        "no id",
        "the wrong way round",
        "one of two without an id",
        "twice",
        "cut off",
        "not base64",
        "not ASCII",
        "short",
    ],
)
def test_what_is_wrong_with_a_key_is_said_without_it(text, says):
    """The message ends up in a log."""
    with pytest.raises(ValueError, match=f"^{says}") as raised:
        read_memory_keys(text)
    assert SECRET[:20] not in str(raised.value)
    assert base64.b64encode(b"s" * 12).decode()[:8] not in str(raised.value)


def test_a_setting_with_a_key_of_another_length_is_refused():
    """It would fail in the first call, and not at the start."""
    with pytest.raises(ValueError, match="^memory_keys: ") as raised:
        BusSettings(node="n", region="iad", regions={"iad": "redis://unused"}, memory_keys={"k1": b"short"})
    assert "short" not in str(raised.value)
