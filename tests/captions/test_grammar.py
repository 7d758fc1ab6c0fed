import pytest

from lightning_failures.bundled.digits import captions as digits
from lightning_failures.captions.grammar import (
    CaptionGrammar,
    CaptionVocabulary,
    indefinite_article,
    known_vocabularies,
)
from lightning_failures.errors import ConfigurationError


@pytest.mark.parametrize(
    "word", ["eight", "orange", "upright three", "unusual", "hour", "MRI", "SUV", "LED", "8", "18 tonner"]
)
def test_indefinite_article__an(word):
    assert indefinite_article(word) == "an"


@pytest.mark.parametrize(
    "word", ["cat", "one", "one-eyed cat", "used car", "unicorn", "European", "UFO", "house", "CT", "9", "1"]
)
def test_indefinite_article__a(word):
    assert indefinite_article(word) == "a"


def test_captions__all_combinations_but_the_reference():
    grammar = CaptionGrammar(["cat", "ocelot"], ["old", "fat"], ["on ice"])
    captions = grammar.captions()
    assert len(captions) == len(set(captions)) == 2 * 3 * 2 - 1
    assert "a photo of a cat" not in captions
    assert "a photo of an ocelot" in captions
    assert "a photo of an old ocelot on ice" in captions
    assert grammar.reference == "a photo of a cat"


def test_captions__no_duplicates_and_clean_spaces():
    grammar = CaptionGrammar(["cat"], ["old", " old ", ""], ["", "on  ice"])
    assert grammar.captions() == ["a photo of a cat on ice", "a photo of an old cat", "a photo of an old cat on ice"]


def test_captions__template_and_reference():
    grammar = CaptionGrammar("eel", ["red"], template="An x-ray of the {}, a drawing")
    assert grammar.captions() == ["An x-ray of the red eel, a drawing"]
    assert CaptionGrammar("eel", ["red"], template="A {}").captions() == ["A red eel"]
    assert CaptionGrammar("eel", ["red"], template="A {}").reference == "An eel"
    assert CaptionGrammar("eel", ["red"], reference="a photo of a red eel").captions() == ["a photo of an eel"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"nouns": []}, "nouns"),
        ({"nouns": [""]}, "nouns"),
        ({"nouns": ["cat"], "adjectives": [True]}, "adjectives must be strings"),
        ({"nouns": ["cat"], "template": "a photo"}, "exactly once"),
    ],
)
def test_grammar__says_what_is_wrong(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        CaptionGrammar(**arguments)


def test_vocabulary__packaged_sets_are_sound():
    assert known_vocabularies() == [
        "celeba", "chestxray", "cifar10", "cifar10-extended", "cifar100", "digits", "general", "imagenet",
    ]  # fmt: skip
    least = {"cifar100": 5, "imagenet": 100}  # of CIFAR-100 the sub-classes alone; of ImageNet the paper's words
    for name in known_vocabularies():
        vocabulary = CaptionVocabulary.load(name)
        for class_name in vocabulary.classes or ("thing",):
            captions = vocabulary.grammar(class_name).captions()
            assert len(captions) >= least.get(name, 200)
            assert not any("  " in c or (" a a" in c.replace("an ", "a ") and " a an" in c) for c in captions)
    cifar10 = CaptionVocabulary.load("cifar10")
    assert set(cifar10.classes) == {
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    }  # fmt: skip


def test_vocabulary__digits_are_the_words_that_the_clip_was_taught():
    grammar = CaptionVocabulary.load("digits").grammar("eight")
    assert list(grammar.adjectives) == [word for word in digits.ADJECTIVES if word]
    assert list(grammar.prepositions) == [word for word in digits.PREPOSITIONS if word]
    assert grammar.reference == digits.caption("eight")
    taught = digits.caption("one", stroke="thin", tint="orange", background="gray")
    assert taught in CaptionVocabulary.load("digits").grammar("one").captions()


def test_vocabulary__of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("adjectives: [blurry]\nclasses:\n  Fire_Truck: {nouns: [fire engine], prepositions: [at night]}\n")
    vocabulary = CaptionVocabulary.load(path)
    assert vocabulary.grammar("fire truck").reference == "a photo of a fire engine"
    assert "a photo of a blurry fire engine at night" in vocabulary.grammar("fire truck").captions()
    assert vocabulary.grammar("owl").captions() == ["a photo of a blurry owl"]
    assert CaptionVocabulary.load(vocabulary) is vocabulary
    (tmp_path / "empty.yaml").touch()
    assert CaptionVocabulary.load(str(tmp_path / "empty.yaml")).grammar("owl").captions() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- red", "must be a mapping"),
        ("adjective: [red]", "Did you mean adjectives"),
        ("adjectives: red", "list of strings"),
        ("adjectives: [on]", "quote words"),
        ("classes: {on: {}}", "quote names"),
        ("classes: {cat: {noun: [x]}}", "class 'cat' has an unknown key 'noun'"),
        ("classes: [cat]", "must map class names"),
        ("template: a photo", "exactly once"),
        ("a: [", "not valid YAML"),
    ],
)
def test_vocabulary__says_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        CaptionVocabulary.load(path)


def test_vocabulary__missing_file():
    with pytest.raises(ConfigurationError, match="Did you mean general"):
        CaptionVocabulary.load("genral")


# -- captions that name no class ---------------------------------------------------------------------------------------


def test_grammar_of__the_absence_of_a_condition_names_attributes_only():
    digits, names = CaptionVocabulary.load("digits"), ("no even digit", "even digit")
    absent = digits.grammar_of("no even digit", names)
    assert absent.reference == "a photo of a digit"
    assert "a photo of a cyan digit" in absent.captions()
    assert not any("even" in caption or " no " in caption for caption in absent.captions())
    present = digits.grammar_of("even digit", names)
    assert present.reference == "a photo of an even digit"
    assert "a photo of a cyan even digit" in present.captions()


def test_grammar_of__a_name_that_only_looks_like_an_absence():
    assert CaptionVocabulary().grammar_of("no entry", ("no entry", "stop")).reference == "a photo of a no entry"


def test_grammar_of__words_of_the_user_for_an_absence():
    words = CaptionVocabulary(classes={"No_edema": {"nouns": ("healthy lung",)}})
    assert words.grammar_of("no edema", ("no edema", "edema")).reference == "a photo of a healthy lung"


@pytest.mark.parametrize(
    ("template", "noun", "reference", "caption"),
    [
        ("a photo of a {}", None, "a photo", "an orange photo"),
        ("a chest x-ray showing {}", None, "a chest x-ray", "an orange chest x-ray"),
        ("a photo of a {}", "digit", "a photo of a digit", "a photo of an orange digit"),
        ("{} seen from above", None, "scene seen from above", "orange scene seen from above"),
    ],
)
def test_grammar_without_class(template, noun, reference, caption):
    grammar = CaptionVocabulary(template, noun, adjectives=("orange",)).grammar_without_class()
    assert (grammar.reference, grammar.captions()) == (reference, [caption])


@pytest.mark.parametrize("noun", ["[a, b]", "''", "3"])
def test_vocabulary__a_noun_that_is_no_word(tmp_path, noun):
    path = tmp_path / "words.yaml"
    path.write_text(f"noun: {noun}\nadjectives: [red]\n")
    with pytest.raises(ConfigurationError, match="'noun' must be a word"):
        CaptionVocabulary.load(path)


def test_groups__classes_of_a_kind_share_its_words_and_keep_their_reference(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text(
        "adjectives: [red]\n"
        "groups:\n  sea_fish:\n    prepositions: [in a tank]\n    classes: {n01: [tench, Tinca], cod: []}\n"
        "classes: {dog: {nouns: [puppy]}}\n"
    )
    vocabulary = CaptionVocabulary.load(path)
    assert [name for name in ("n01", "TENCH", "tinca", "cod", "dog", "sea fish") if vocabulary.knows(name)] == [
        "n01", "TENCH", "tinca", "cod", "dog",
    ]  # fmt: skip
    assert vocabulary.grammar("n01") == vocabulary.grammar("tench") == vocabulary.grammar("Tinca")
    assert vocabulary.reference("n01") == "a photo of a tench"
    assert vocabulary.reference("cod") == "a photo of a cod"
    assert vocabulary.grammar("cod").captions() == [
        "a photo of a sea fish", "a photo of a sea fish in a tank", "a photo of a red sea fish",
        "a photo of a red sea fish in a tank",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups: [fish]", "'groups' must be a mapping of names to words"),
        ("groups: {fish: {classes: [tench]}}", "'classes' must be a mapping of names to words"),
        ("groups: {fish: {class: {}}}", "unknown key 'class'"),
        ("groups: {fish: {classes: {n01: tench}}}", "names of 'n01' must be a list"),
    ],
)
def test_groups__say_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "words.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        CaptionVocabulary.load(path)


def test_imagenet__a_thousand_classes_of_37_kinds():
    vocabulary = CaptionVocabulary.load("imagenet")
    ids = [name for name in vocabulary.classes if name.startswith(("n0", "n1"))]
    assert sum(name[1:].isdigit() for name in ids) == 1000
    assert len({vocabulary.classes[name]["nouns"] for name in ids}) == 37
    assert vocabulary.grammar("n02012849").reference == "a photo of a crane bird"
    assert "a photo of a group of bird perched" in vocabulary.grammar("crane bird").captions()
