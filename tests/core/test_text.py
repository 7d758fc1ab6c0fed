"""Texts made safe for one line, for Markdown and for captions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.core.text import clean, escape_markdown, number, shorten_caption

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
