"""People's names for features: read strictly, and never touched by what the package adds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.core.atomic import TEMPORARY
from lightning_failures.data.report import FeatureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.feature_names import (
    FeatureName,
    FeatureNames,
    add_to_template,
    with_names,
)

MINE, OTHER = "a" * 32, "b" * 32
WRITTEN = f"""\
# my notes
- encoder: "{MINE}"   # the first one
  feature: 17
  name: red stroke
  tag: spurious
  action: collect threes in other tints

- {{encoder: "{OTHER}", feature: 17, name: ear}}
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.yaml"


def load(path, text):
    path.write_text(text)
    return FeatureNames.load(path, encoder=MINE)


def test_load__no_file_no_names(path):
    assert FeatureNames.load(path, encoder=MINE).names == {}


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "[]", "null"])
def test_load__nothing_in_it(path, text):
    assert load(path, text).names == {}


def test_load__the_entries_of_one_encoder(path):
    names = load(path, WRITTEN)
    assert names.of(17) == FeatureName("red stroke", "spurious", "collect threes in other tints")
    assert names.of(3) == FeatureName()
    assert FeatureNames.load(path, encoder=OTHER).name_of(17) == "ear"
    assert FeatureNames.load(path, encoder="c" * 32).names == {}


def test_load__texts_become_one_line_of_bounded_length(path):
    names = load(path, f'- encoder: {MINE}\n  feature: 1\n  name: "two\\nlines\\e[31m"\n  action: "{"x" * 5000}"\n')
    assert names.name_of(1) == "two lines [31m"
    assert len(names.of(1).action) == 500


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: [", "is not YAML"),
        ("- !!python/object/apply:os.getcwd []", "is not YAML"),
        ("name: red", "must be a list of entries"),
        ("- red", "entry 1 must map encoder"),
        ("- {encoder: a, feature: 1, nmae: red}", "unknown key 'nmae'.*Did you mean name"),
        ("- {feature: 1}", "encoder must be a fingerprint in quotes, got nothing"),
        ("- {encoder: 12, feature: 1}", "encoder must be a fingerprint in quotes, got int"),
        ("- {encoder: a}", "feature must be a non-negative integer, got 'None'"),
        ("- {encoder: a, feature: -1}", "feature must be a non-negative integer, got '-1'"),
        ("- {encoder: a, feature: true}", "feature must be a non-negative integer"),
        ("- {encoder: a, feature: 1, tag: spurios}", "tag must be spurious or overemphasised.*Did you mean spurious"),
        ("- {encoder: a, feature: 1, tag: [spurious]}", "tag must be spurious"),
        ("- {encoder: a, feature: 1, name: 3}", "name must be a string, got int"),
        ("- {encoder: a, feature: 1, action: [go]}", "action must be a string, got list"),
        ("- {encoder: a, feature: 1}\n- {encoder: a, feature: 1, name: x}", "two entries for feature 1"),
        ("- {encoder: a, feature: 1}\n" + "#" * 300_000, "larger than 262144 bytes"),
        ("[" * 1200, "is not YAML"),
        ("- &a {encoder: a, feature: 1}\n- *a", "is not YAML.*aliases"),
        ("- {encoder: a, feature: -0x" + "f" * 6000 + "}", "integer, got 'a very large number'"),
        ("- {encoder: a, feature: 0x" + "f" * 6000 + "}", "feature must be a non-negative integer"),
    ],
)
def test_load__what_is_wrong_is_said(path, text, match):
    with pytest.raises(ConfigurationError, match=f"(?s)features.yaml.*{match}"):
        load(path, text)
    with pytest.raises(ConfigurationError):
        add_to_template(path, [FeatureReport(1)], encoder=MINE)
    assert path.read_text() == text


def test_load__nested_aliases_are_not_written_out(path):
    lists = ["&a0 [x, x]", *(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]  # 2^30 texts, in 500 bytes
    with pytest.raises(ConfigurationError, match="aliases"):
        load(path, f"- encoder: {MINE}\n  feature: 1\n  tag: [{', '.join(lists)}]\n")


def test_add_to_template__at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    assert add_to_template("~/features.yaml", [FeatureReport(3)], encoder=MINE)
    assert [one.name for one in tmp_path.iterdir()] == ["home"]
    assert 3 in FeatureNames.load("~/features.yaml", encoder=MINE).entries


def test_load__no_text(path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read as text"):
        FeatureNames.load(path, encoder=MINE)


def test_add_to_template__makes_a_file_to_fill_in(path):
    shown = [FeatureReport(17, ("label/cat",), caption="a photo of a red: cat\n- x"), FeatureReport(3)]
    assert add_to_template(path, shown, encoder=MINE)
    text = path.read_text()
    assert '# looks like "a photo of a red: cat - x" (hypothesis); splits label/cat' in text
    assert "spurious or overemphasised" in text
    assert FeatureNames.load(path, encoder=MINE).entries == {17: FeatureName(), 3: FeatureName()}
    filled = text.replace("feature: 17\n  name:", "feature: 17\n  name: red stroke").replace(
        "tag:  #", "tag: spurious  #", 1
    )
    assert load(path, filled).of(17) == FeatureName("red stroke", "spurious")


def test_add_to_template__what_is_there_stays_to_the_byte(path):
    path.write_text(WRITTEN.rstrip("\n"))  # an editor that leaves no end of line
    assert add_to_template(path, [FeatureReport(17), FeatureReport(3)], encoder=MINE)
    once = path.read_text()
    assert once.startswith(WRITTEN)
    assert once.count("feature: 3") == 1
    assert FeatureNames.load(path, encoder=MINE).name_of(17) == "red stroke"
    assert add_to_template(path, [FeatureReport(3), FeatureReport(17)], encoder=MINE)
    assert path.read_text() == once
    assert not list(path.parent.glob(f"*{TEMPORARY}"))


@pytest.mark.parametrize(
    "text",
    [
        f'[{{encoder: "{MINE}", feature: 17, name: ear}}]\n',  # in one line
        f'  - encoder: "{MINE}"\n    feature: 17\n    name: ear\n',  # indented
        f'- encoder: "{MINE}"\n  feature: 17\n  name: ear\n...\n',  # the end of a document
        f'- encoder: "{MINE}"\n  feature: 17\n  name: ear\n  action: |\n    go\n# {"x" * 262_000}',  # almost full
    ],
)
def test_add_to_template__where_nothing_can_be_added_nothing_is_changed(path, text):
    path.write_text(text)
    assert not add_to_template(path, [FeatureReport(n) for n in range(9)], encoder=MINE)
    assert path.read_text() == text


@settings(deadline=None, max_examples=60)
@given(caption=st.text(max_size=40), group=st.text(max_size=20), text=st.sampled_from(["", WRITTEN, "# x"]))
def test_add_to_template__no_caption_and_no_name_becomes_yaml(tmp_path_factory, caption, group, text):
    path = tmp_path_factory.mktemp("names") / "features.yaml"
    path.write_text(text)
    before = FeatureNames.load(path, encoder=MINE).entries
    assert add_to_template(path, [FeatureReport(5, (group,), caption=caption)], encoder=MINE)
    assert FeatureNames.load(path, encoder=MINE).entries == {**before, 5: FeatureName()}
    assert path.read_text().startswith(text)


def test_with_names__each_feature_by_its_whole_number():
    rule = "0.1 < feature 1 <= 0.36 and feature 17 > 1"
    assert with_names(rule, {1: "ear"}) == '0.1 < feature 1 "ear" <= 0.36 and feature 17 > 1'
    assert with_names(rule, {7: "ear"}) == rule
