import pytest

from lightning_failures.captions.words import MIN_COUNT, MOST_WORDS, content_words, over_represented, words_of_name

RED = ["a red digit on white", "a red digit", "a red digit on black", "a red digit"]


def test_over_represented__a_pair_must_say_more_than_its_words():
    failed = ["a dog on a wooden table"] * 5 + ["a dog on a wooden floor", "a dog beside a glass table"]
    correct = ["a dog on a wooden floor"] * 5 + ["a dog beside a glass table"] * 5
    words = over_represented(failed, correct, without=words_of_name("dog"))
    assert words[0] == "wooden table"  # neither wood nor tables set the failures apart as this does
    assert "wooden" not in words[0].replace("wooden table", "")
    # a word that only failures use makes its pairs needless
    assert over_represented(["a cyan digit on white"] * 4, RED)[:2] == ("cyan", "white")


def test_over_represented__needs_enough_captions():
    few = ["a cyan digit"] * (MIN_COUNT - 1)
    assert "cyan" not in over_represented(few, RED)
    assert "cyan" in over_represented(["a cyan digit"] * MIN_COUNT, RED)


def test_over_represented__the_same_words_give_nothing():
    assert over_represented(RED, RED) == ()
    assert over_represented([], []) == ()
    assert over_represented(["", " "] * 5, ["", "!"] * 5) == ()


def test_over_represented__at_most_so_many_of_each_side_in_an_order_that_depends_on_nothing_else():
    failed = [" ".join(f"w{chr(97 + i)}{chr(97 + j)}" for i in range(6)) for j in range(8)] * 4
    words = over_represented(failed, RED * 8)
    assert len(words) <= 2 * MOST_WORDS
    assert words == over_represented(failed[::-1], RED * 8)


def test_over_represented__a_word_counts_once_a_caption():
    chatty = ["red " * 50, "blue", "blue", "blue"]
    assert over_represented(chatty, ["green"] * 4, ())[0] == "blue"


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A PHOTO of a Dog!", ["dog"]),
        ("x-ray, 3 o'clock; CAFÉ 猫", ["x-ray", "o'clock", "café", "猫"]),
        ("the red, red rose", ["red", "rose"]),
        ("", []),
        ("12 34", []),
    ],
)
def test_content_words(caption, words):
    assert content_words(caption) == words


def test_words_of_name():
    assert {"fire", "trucks"} <= words_of_name("fire_truck")
    assert content_words("two fire trucks in snow", words_of_name("Fire truck")) == ["two", "snow"]
