"""Kinds of a noun from a WordNet in its own format, from the package ``wn``, and the vocabulary of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_failures.captions import wordnet
from lightning_failures.captions.image_to_text import load_captions
from lightning_failures.captions.wordnet import WnNouns, WordNetFiles, WordNetVocabulary, installed_wordnet
from lightning_failures.errors import ConfigurationError

# excerpts of WordNet 3.0 with pointers to each other alone, and the first lines of its licence
DATA = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
02084071 05 n 02 dog 0 domestic_dog 0 003 ~ 02085374 n 0000 ~ 02087122 n 0000 ~i 02099999 n 0000 | a dog
02085374 05 n 01 toy_dog 0 002 @ 02084071 n 0000 ~ 02086240 n 0000 | any of several breeds of very small dogs
02086240 05 n 01 Shih-Tzu 0 002 @ 02085374 n 0000 @ 02087122 n 0000 | a Chinese breed
02087122 05 n 02 hunting_dog 0 Dog 1 002 @ 02084071 n 0000 ~ 02086240 n 0000 | a dog used in hunting game
02099999 05 n 01 Laika 0 001 @i 02084071 n 0000 | one dog
10114209 18 n 01 dog 2 000 | informal term for a man
"""
INDEX = """\
  1 This software and database is being provided to you, the LICENSEE, by
dog n 2 2 @ ~ 2 1 02084071 10114209
toy_dog n 1 2 @ ~ 1 0 02085374
"""
LMF = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
  <Lexicon id="tiny" label="Tiny" language="en" email="a@b.c" license="CC0" version="1">
    <LexicalEntry id="tiny-dog-n"><Lemma writtenForm="dog" partOfSpeech="n"/>
      <Sense id="tiny-dog-1" synset="tiny-1-n"/></LexicalEntry>
    <LexicalEntry id="tiny-puppy-n"><Lemma writtenForm="puppy" partOfSpeech="n"/>
      <Sense id="tiny-puppy-1" synset="tiny-2-n"/></LexicalEntry>
    <Synset id="tiny-1-n" ili="i1" partOfSpeech="n"><SynsetRelation relType="hyponym" target="tiny-2-n"/></Synset>
    <Synset id="tiny-2-n" ili="i2" partOfSpeech="n"><SynsetRelation relType="hypernym" target="tiny-1-n"/></Synset>
  </Lexicon>
</LexicalResource>
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return tmp_path


def test_narrower__the_nearest_first_each_once_without_instances(folder):
    found = WordNetFiles.read(folder)
    assert found.narrower("Dog") == ("toy dog", "hunting dog", "Shih-Tzu")
    assert found.narrower("toy dog") == ("Shih-Tzu",)
    assert found.narrower("dog", most=1) == ("toy dog",)
    assert found.narrower("dog", preferred={2086240}) == ("Shih-Tzu",)
    assert found.narrower("cat") == ()


def test_vocabulary__is_that_of_the_folder_that_the_environment_names(folder, monkeypatch):
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    installed_wordnet.cache_clear()
    try:
        vocabulary, captioner = load_captions("wordnet")
    finally:
        installed_wordnet.cache_clear()
    assert captioner is None
    grammar = vocabulary.grammar_of("dog", ("cat", "dog"))
    assert "a photo of a Shih-Tzu in the grass" in grammar.captions()
    assert grammar.reference == "a photo of a dog"
    assert vocabulary.grammar_of("cat", ("cat", "dog")).nouns == ("cat",)


def test_vocabulary__without_a_wordnet_names_the_remedies(monkeypatch):
    monkeypatch.setattr(wordnet, "installed_wordnet", lambda: None)
    with pytest.raises(ConfigurationError, match=r"wordnet-base.*WNSEARCHDIR"):
        load_captions("wordnet")


def test_read__another_form_is_an_error(folder):
    (folder / "data.noun").write_text("no such form\n")
    with pytest.raises(ConfigurationError, match=r"data\.noun and index\.noun"):
        WordNetFiles.read(folder)


def test_wn__kinds_of_its_lexicons(tmp_path, monkeypatch):
    wn = pytest.importorskip("wn")
    monkeypatch.setattr(wn.config, "data_directory", tmp_path)
    (tmp_path / "tiny.xml").write_text(LMF)
    wn.add(tmp_path / "tiny.xml", progress_handler=None)
    assert WnNouns().narrower("dog") == ("puppy",)
    assert WnNouns().narrower("cat") == ()
    assert WordNetVocabulary(wordnet=WnNouns()).grammar("dog").nouns == ("dog", "puppy")
