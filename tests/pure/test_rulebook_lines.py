"""The line on which a key of a TOML text stands, whatever stands before it."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rulebook.lines import line_of

TEXT = '''# 1
title = "t"

[agents.a]
instructions = """
[agents.b]
voice = 3

[still] text = of a
"""
tools = [
  {type = "function"},
  # a comment
  {x = 5},
]
agents.x.voice = 5
[agents."b.c"]  # 17
 voice=5
[[agents.d.tools]]
name="x"
[[agents.d.tools]]
name="y"
[agents.d.tools.inner]
deep = {very = 1}
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("agents",), 4),
        (("agents", "a"), 4),
        (("agents", "a", "instructions"), 5),
        (("agents", "a", "voice"), 4),
        (("agents", "a", "tools", 1, "x"), 11),
        (("agents", "a", "agents", "x", "voice"), 16),
        (("agents", "b.c", "voice"), 18),
        (("agents", "b.c", "none"), 17),
        (("agents", "d", "tools", 0, "name"), 20),
        (("agents", "d", "tools", 1, "name"), 22),
        (("agents", "d", "tools", 1, "inner", "deep", "very"), 24),
        (("agents", "b", "voice"), 4),
        (("none",), 1),
        ((), 1),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_a_key_is_found_on_its_line_or_its_tables(path, line):
    """Text that looks like a table is none, and a key that is missing is looked for in its table."""
    tomllib.loads(TEXT)
    assert line_of(TEXT, path) == line


def test_lines_are_counted_as_editors_do():
    """TOML's lines end with a line feed; Python knows seven more ways."""
    assert line_of("a = 'x\u2028y'\r\nb = 1\r\nc = 2", ("c",)) == 3


@pytest.mark.timeout(20)
def test_long_texts_are_not_parsed_again_for_each_of_their_lines():
    """Minutes for what takes a tenth of a second; other files could not be read meanwhile."""
    prose = "\n".join(f"Line {number} of what the agent should know." for number in range(20_000))
    text = f"[agents.a]\ninstructions = '''\n{prose}'''\nvoice = 5"
    assert line_of(text, ("agents", "a", "voice")) == 20_003


KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["1", "'x'", "[1,\n 2]", "'''\n[a]\nb = 1\n'''", "{b = {c = 1}}"])


@given(st.lists(st.tuples(KEYS, KEYS, VALUES), max_size=8, unique_by=lambda row: row[:2]))
def test_every_key_of_a_text_is_found_where_it_was_written(rows):
    """Whatever the statements before it are."""
    text, lines = "", {}
    for table in dict.fromkeys(row[0] for row in rows):
        text += f"\n[{table}]\n"
        for _, key, value in (row for row in rows if row[0] == table):
            lines[table, key] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    assert {path: line_of(text, path) for path in lines} == lines
