"""Ids, partitions and key names: what every node and every version must compute alike."""

import re
from collections import Counter

import pytest

from fanout.core.keys import Keys, tag_in
from fanout.core.partitions import PARTITIONS, SLOTS, partition_of, partition_tags, slot_of, tag_of
from fanout.ids import home_of, is_home_name, is_region_name, item_id_for, new_call_id, region_of
from fanout.settings import BusSettings


def test_a_call_id_names_its_home_for_ever():
    """The home is read from the id alone, on any node, without a directory."""
    call_id = new_call_id("iad")
    assert re.fullmatch(r"rtc_iad_[A-Za-z0-9]{22}", call_id)
    assert home_of(call_id) == "iad"
    assert new_call_id("iad") != call_id


@pytest.mark.parametrize(
    ("call_id", "region"),
    [
        ("rtc_lhr-2_abcdefghijklmnopqrstuv", "lhr-2"),
        ("rtc_lhr_x", "lhr"),
        ("rtc_lhr_" + "x" * 56, "lhr"),
        ("rtc_lhr_" + "x" * 57, None),
        ("rtc_lhr_", None),
        ("rtc__abc", None),
        ("sess_abc", None),
        ("", None),
        ("rtc_lhr_a b", None),
        ("rtc_lhr_abc\n", None),
        ("rtc_lhr_é", None),
    ],
    ids=repr,
)
def test_what_is_no_call_id_has_no_home(call_id, region):
    """Ids come from outside: 64 characters of a small alphabet, or nothing; a shard is part of the name."""
    assert home_of(call_id) == region


def test_a_region_name_must_be_readable_out_of_an_id():
    """A `-` in it is a shard, a `_` would make the id ambiguous."""
    assert is_region_name("us1")
    assert not is_region_name("us-east")
    assert region_of("us1-2") == "us1"
    assert is_home_name("us1-2")
    assert not is_home_name("us1-2-3")
    with pytest.raises(ValueError, match="us_east"):
        new_call_id("us_east")


def test_an_item_id_is_always_the_same_and_fits_the_model():
    """A repeat must make the model answer "duplicate", so the id may not depend on when or where it is computed."""
    item_id = item_id_for("rtc_iad_a", "m1")
    assert item_id == "item_bd6c2d277cbb01014b9371d3833"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,32}", item_id)
    assert len({item_id_for(call, message) for call in ("a", "b") for message in ("1", "2")}) == 4


def test_the_slot_of_a_tag_is_the_one_of_the_cluster_specification():
    """The specification's own test value for CRC16."""
    assert slot_of(b"123456789") == 0x31C3 % SLOTS


def test_each_tag_lies_in_the_middle_of_its_64th_of_the_slots():
    """However a cluster divides the slots among its primaries, each gets its share of the partitions."""
    width = SLOTS // PARTITIONS
    for partition, tag in enumerate(partition_tags()):
        assert abs(slot_of(tag.encode()) - (partition * width + width // 2)) <= 1
        assert len(tag) <= 3


def test_the_tags_never_change():
    """They are part of the key names of live calls: another choice would lose every call at an upgrade."""
    assert partition_tags()[:4] + partition_tags()[-1:] == ("53t", "j3j", "if5", "kec", "802")
    assert partition_of("rtc_iad_abcdefghijklmnopqrstuv") == 12


def test_calls_spread_evenly_over_the_partitions():
    """Within a fifth of the mean for ten thousand calls."""
    counts = Counter(partition_of(f"rtc_iad_{number:022}") for number in range(64_000))
    assert len(counts) == PARTITIONS
    assert all(800 < count < 1200 for count in counts.values())


def test_all_keys_of_a_call_share_one_hash_tag():
    """Else a script that touches them would be refused on a cluster."""
    names = Keys("dev").call("rtc_iad_x", "acme").all
    assert {tag_in(name) for name in names} == {tag_of("rtc_iad_x")}
    assert len(set(names)) == 15
    assert all(name.startswith("dev:") for name in names)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"regions": {"us_east": "redis://h"}, "region": "us_east"}, "us_east"),
        ({"region": "lhr"}, "lhr"),
        ({"silence_seconds": 0.5}, "silence_seconds"),
        ({"node_ttl_seconds": 3.0}, "node_ttl_seconds"),
        ({"node": ""}, "node"),
        ({"prefix": "a{b}"}, "prefix"),
    ],
    ids=["region-name", "own-region", "silence", "node-ttl", "node", "prefix"],
)
def test_a_bad_setting_is_named(changes, named):
    """An operator must see which one it is."""
    with pytest.raises(ValueError, match=named):
        BusSettings(**{"node": "a", "region": "iad", "regions": {"iad": "redis://h"}, **changes})


def test_settings_do_not_show_the_password():
    """They end up in logs and tracebacks."""
    assert "secret" not in repr(BusSettings(node="a", region="iad", regions={"iad": "redis://:secret@h"}))
