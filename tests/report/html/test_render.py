"""The text of a page: what users wrote stays text, and the policy names our scripts alone."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_failures.data.records import DiagnosisReport
from lightning_failures.data.report import ClassReport, FailureReport, FeatureReport, ValueReport
from lightning_failures.data.tree_report import GroupReport, LeafReport, NodeReport
from lightning_failures.report.html.render import data_block, render
from lightning_failures.report.run_folder import Run

HOSTILE = (
    "</script><script>x</script>",
    "<img src=x onerror=alert(1)>",
    '" onclick="x',
    "{{ 1 }}",
    "\udcff",
    "z" * 10_000,
)


def page_of(name):
    values = (ValueReport(name, name, 9, 8, 8, 3, 0.2, 0.8, 0.8, (0.5, 0.9), 0.3),)
    entry = ClassReport(
        name, 40, accuracy=0.5, cv_score=0.9, p_value=0.001, pattern=True, base_error_rate=0.5, enrichment=values,
        hardest_captions=(name,), hardest_caption_scores=(-1.0,), easiest_captions=(name,),
        diagnosis=DiagnosisReport(name, 0.7, {name: 0.7}, (name,), name),
    )  # fmt: skip
    feature = FeatureReport(3, (name,), (), name, 0.5, 2.0, name, name, name)
    act = {"kind": name, "epoch": 3, "classes": [{"class": name, "flagged": 1, "reason": name}], "verdict": name}
    report = FailureReport(
        40, 0.5, (entry, ClassReport(name, 3, skipped=name)), features=(feature,), interventions=(act,), encoder=name,
        robust_encoder=name, reference=name, stage=name, notes=(name,),
    )  # fmt: skip
    return render(Run(Path(f"logs/{name[:50]}/failures"), report, (report,), notes=(name,)))


class Parts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        (self.scripts if self.tags and self.tags[-1] == "script" else self.words).append(data)


@pytest.mark.parametrize("name", HOSTILE, ids=["script", "image", "attribute", "template", "surrogate", "long"])
def test_render__words_stay_words(name):
    text = page_of(name)
    text.encode("utf-8")
    parts, plain = Parts(text), Parts(page_of("cat"))
    assert parts.tags == plain.tags  # the same elements, whatever the words
    assert {key for key, _ in parts.attributes} == {key for key, _ in plain.attributes}
    assert all(value.startswith("#") for key, value in parts.attributes if key == "href")
    assert len(text) < len(page_of("cat")) + 60 * 600  # shortened wherever they stand
    if name != "\udcff":
        assert any(name[:20] in word for word in parts.words)


def test_render__records_with_nothing_in_them():
    nan = math.nan
    leaf = LeafReport("feature 1 > 2", 0, nan, nan, nan, False, (nan, nan))
    nodes = (NodeReport(0, 0, feature=1), NodeReport(0, 0, nan, nan, (nan, nan), parent=0, above=True, leaf=0))
    groups = (
        GroupReport("label", "cat", 0),
        GroupReport("label", "cat", 0, pattern=True),
        GroupReport("prediction", "cat", 0, pattern=True, leaves=(leaf,), nodes=nodes),
        GroupReport("prediction", "cat", 0, pattern=True, leaves=(leaf,)),
    )
    classes = (
        ClassReport("cat", 0),
        ClassReport("cat", 2, base_error_rate=0.5, pattern=True, hardest_captions=("a",), cv_null_interval=(nan, nan)),
        ClassReport(
            "cat", 2, accuracy=nan, cv_score=nan, base_error_rate=nan, enrichment=(ValueReport("a", "b", 0, 0),)
        ),
    )
    report = FailureReport(0, None, classes, groups, features=(FeatureReport(1),), coverage=nan, epoch=None)
    text = render(Run(Path(), report, ()))
    assert "nan</data>" not in text
    assert 'value="nan"' not in text


def test_render__the_policy_names_our_scripts():
    text = page_of("cat")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe-eval" not in policy
    (source,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in policy


def test_render__the_kind_of_failure_and_its_remedy():
    found = DiagnosisReport("label noise", 0.82, {"label noise": 0.82}, ("Labels are odd.",), "report.doubted_ids")
    entry = ClassReport("cat", 40, accuracy=0.5, cv_score=0.9, pattern=True, base_error_rate=0.5, diagnosis=found)
    page = render(Run(Path("logs/failures"), FailureReport(40, 0.5, (entry,)), ()))
    assert "Kind of failure: label noise (82" in page
    assert "Labels are odd." in page
    assert "Remedy: <code>report.doubted_ids</code>" in page
    assert '<small class="under">label noise</small>' in page


def test_data_block__reads_back_and_ends_nothing():
    value = {"a": ["</script><!--<script>", "&\u2028\u2029\udcff", 0.1, None, {"__proto__": "é"}]}
    text = data_block(value)
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == value


def test_data_block__no_numbers_that_json_lacks():
    with pytest.raises(ValueError, match="Out of range"):
        data_block([float("nan")])
