"""Text that users name can neither colour a terminal nor break a table."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.core.text import (
    clean,
    escape_markdown,
    interval,
    looks_digested,
    number,
    printable,
    shorten_caption,
    tag_part,
    to_bytes,
    with_digest,
)

ANY = st.text(st.characters(), max_size=300)  # lone surrogates and control characters among them


@given(ANY)
def test_clean__one_printable_line(text):
    line = clean(text)
    assert len(line) <= 200
    assert line.isprintable()
    line.encode("utf-8")


@given(ANY)
def test_escape_markdown__neither_cell_nor_tag_nor_link_can_be_opened(text):
    escaped = escape_markdown(text)
    assert not set("<>|\n\r") & set(escaped)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]~$]|(?<![\\&])#", escaped)


@pytest.mark.parametrize(
    ("caption", "short"),
    [
        ("a photo of a red cat", "red cat"),
        ("a photo of an emu", "emu"),
        ("a photo of cats", "cats"),
        ("a photo of a", "a"),
        ("an x-ray of a hand", "an x-ray of a hand"),
    ],
)
def test_shorten_caption__drops_only_the_common_words(caption, short):
    assert shorten_caption(caption) == short


def test_number__undefined_is_a_dash():
    assert [number(None), number(float("nan")), number(0.0)] == ["-", "-", "0.00"]


@given(ANY)
def test_printable__keeps_lines_and_columns(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(character.isprintable() or character == "\n" for character in shown)


@given(ANY, ANY)
def test_tag_part__different_texts_have_different_parts(one, other):
    part = tag_part(one)
    assert not set("/\\:\n") & set(part)
    assert (part == tag_part(other)) == (one == other)


def test_with_digest__is_recognised():
    assert looks_digested(with_digest("fire", "fire/truck"))
    assert not looks_digested("fire-truck")


def test_interval__undefined_is_a_dash():
    assert [interval(None), interval((0.25, 0.4))] == ["-", "0.25 to 0.40"]


@given(ANY)
def test_to_bytes__never_fails(text):
    to_bytes(text).decode("utf-8")
