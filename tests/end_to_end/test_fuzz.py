"""Any bytes, any values: the readers of the package read them, or refuse them with an error of the package.

``benchmarks/fuzz.py`` holds the readers and damages valid files; here hypothesis generates files and shrinks failures.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz, fuzz_gradings
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError, FailureModesError
from lightning_failures.interventions.synthesis.ledger import LedgerRow

ALL = ["cache", "pool", "report", "directions", "vocabulary", "ledger", "generated image", "config"]
ALL += ["gallery", "examples", "features"]
ALL += ["weights, safetensors", "weights, torch.save"]

KEYS = st.sampled_from(["name", "examples", "classes", "groups", "summary", "dtype", "shape", "nouns", "seed", "modes"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(fuzz.HUGE)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4)
)


@pytest.fixture(scope="module")
def doors():
    """The readers, with valid files for each."""
    patch = pytest.MonkeyPatch()
    patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with tempfile.TemporaryDirectory() as folder:
        yield fuzz.doors(Path(folder))
    patch.undo()


def reads_or_refuses(door: fuzz.Door, data: bytes) -> None:
    try:
        door.read(data)
    except door.refusals:
        pass
    except Exception as error:
        if door.form != "yaml" or fuzz.passed_through_us(error):
            raise


def structured(door: fuzz.Door, value: object) -> bytes:
    """Return a value in the file format of a reader."""
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if door.form == "safetensors":
        return len(text).to_bytes(8, "little") + text + bytes(200)
    return text + b"\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_readers__any_bytes(doors, name):
    @settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), database=None)
    @given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
    def check(data):
        reads_or_refuses(doors[name], data)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("generated image", "weights, torch.save")])
def test_readers__any_values(doors, name):
    @settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), database=None)
    @given(VALUES)
    def check(value):
        reads_or_refuses(doors[name], structured(doors[name], value))

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_readers__damaged_files(doors, name):
    found = fuzz.fuzz(doors[name], 150, seed=1)
    assert found.others == []
    assert found.read + found.refused + found.of_the_parser == found.inputs == 150
    assert found.refused > 75  # most inputs must be invalid
    assert found.growth_mib < 100  # even if a file claims a huge size


@pytest.mark.slow
def test_readers__this_test_can_fail(doors):
    """A reader that trusts its file."""

    def trusting(data):
        FailureReport(**json.loads(data))

    found = fuzz.fuzz(fuzz.Door([b'{"examples": 1, "accuracy": null, "classes": []}'], trusting, "json"), 50, seed=0)
    assert len(found.others) > 20


@settings(deadline=None, max_examples=100)
@given(VALUES)
def test_report__any_values(value):
    data = {"examples": 1, "accuracy": 0.5, "classes": []} | (value if isinstance(value, dict) else {"classes": value})
    try:
        report = FailureReport.from_dict(data)
    except DataError:
        return
    assert FailureReport.from_json(report.to_json()).to_dict() == report.to_dict()


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["model", "seed", "class", "direction_epoch", "decision_value", "file", "synthetic"]), VALUES)
def test_ledger_row__any_value_of_a_field(key, value):
    row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2)
    kinds = {"seed": int, "class": int, "synthetic": bool, "model": str}
    try:
        read = LedgerRow.from_dict(row.to_dict() | {key: value})
    except DataError:
        return
    assert type(read.to_dict()[key]) is kinds.get(key, type(read.to_dict()[key]))


def test_from_plain__says_where():
    good = fuzz.example_report().to_dict()
    for change, message in (
        (lambda r: r.pop("examples"), "FailureReport lacks 'examples'"),
        (lambda r: r["classes"].append(3), r"FailureReport.classes\[2\] must be a mapping, got int"),
        (lambda r: r["classes"][0].update(name=None), r"classes\[0\].name must be str, got NoneType"),
        (lambda r: r["classes"][0].update(examples=True), r"classes\[0\].examples must be int, got bool"),
        (lambda r: r["groups"][0]["leaves"][0].update(interval=[0.5]), r"leaves\[0\].interval must be .*, got list"),
        (lambda r: r["summary"].update(a="b"), r"FailureReport.summary\['a'\] must be float, got str"),
        (lambda r: r.update(accuracy=10**400), r"FailureReport.accuracy is too large"),
        (lambda r: r.update(schema=2), r"schema 2, of a later version; this version reads schema 1"),
    ):
        data = json.loads(json.dumps(good))
        change(data)
        with pytest.raises(DataError, match=message):
            FailureReport.from_dict(data)
    assert FailureReport.from_dict(good | {"directions": 3}) == FailureReport.from_dict(good)  # not a field of the file
    with pytest.raises(DataError, match="must be a mapping"):
        from_jsonable(LedgerRow, [])


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\x00", "[" * 100_000, '{"a": ' * 100_000, "1" * 5000 + "x"])
def test_read_json__refuses(text):
    with pytest.raises(DataError, match="not JSON"):
        read_json(text)


def test_example_report__has_something_in_every_field():
    """Damage to any field is tried."""
    data = fuzz.example_report().to_dict()
    empty = {key for key, value in data.items() if value in (None, [], {})}
    encoders = {"encoder", "robust_encoder", "encoder_fingerprint", "robust_encoder_fingerprint"}
    assert empty <= {"reference", "run_id", *encoders}
    assert all(value not in (None, [], {}) for key, value in data["classes"][0].items() if key != "skipped")


def test_yaml__that_lists_itself_is_refused(tmp_path):
    from lightning_failures.captions.grammar import CaptionVocabulary

    (tmp_path / "words.yaml").write_text("adjectives: &a [*a]")
    assert yaml.safe_load("&a [*a]")  # PyYAML reads it
    with pytest.raises(FailureModesError, match="list of strings"):
        CaptionVocabulary.load(tmp_path / "words.yaml")


@pytest.mark.slow
def test_generated_image__whose_header_is_cut(doors):
    """Pillow raises a ValueError."""
    data = bytearray(doors["generated image"].valid[0])
    data[8:12] = (5).to_bytes(4, "big")
    with pytest.raises(DataError, match="cannot be read"):
        doors["generated image"].read(bytes(data))


def test_gradings__of_known_truth():
    """Batches, outputs, labels and class lists in many forms: graded as they are meant, or refused."""
    outcomes, failures = fuzz_gradings.run(400, seed=7)
    assert failures == []
    assert outcomes["batches: right"] > 50
    assert outcomes["batches: refused"] > 20
    assert outcomes["analyse: right"] > 20


def test_gradings__a_wrong_grade_is_noticed(monkeypatch):
    right = fuzz_gradings.grade
    monkeypatch.setattr(
        fuzz_gradings, "grade", lambda case: replace(grades := right(case), predictions=(grades.labels + 1) % 2)
    )
    assert fuzz_gradings.run(40, seed=7)[1]
