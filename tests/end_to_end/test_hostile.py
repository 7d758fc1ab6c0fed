"""Hostile names, captions, paths and files are shown but not interpreted, kept in their folder, and never executed."""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import pickle
import re
import shutil
import unicodedata
import warnings
from collections import OrderedDict
from html.parser import HTMLParser
from pathlib import Path

import markdown
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_failures import FailureModes
from lightning_failures.analysis import AnalysisResult
from lightning_failures.bundled.models import CLIP_FOLDER
from lightning_failures.callback import AdvancedOptions
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.cli import main
from lightning_failures.core.text import clean, escape_markdown, tag_part
from lightning_failures.data.report import (
    ClassReport,
    FailureReport,
    FeatureReport,
    FlaggedConfusionReport,
    MistakenReport,
    ModeReport,
    SliceReport,
    ValueReport,
)
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.directions import FailureDirections
from lightning_failures.encoders import OpenCLIPEncoder, RobustEncoder, load_encoder
from lightning_failures.errors import ConfigurationError, DataError, EncoderError, GeneratorError
from lightning_failures.interventions import Upweight
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile, class_picture
from lightning_failures.report.tables import class_table, classes_markdown
from lightning_failures.trainer.metric_keys import worst_class_values
from lightning_failures.trainer.options import group_options
from lightning_failures.trainer.run_folder import safe_name
from lightning_failures.writers import CSVWriter, FileWriter
from lightning_failures.writers.csv import COLUMNS as CLASS_COLUMNS
from lightning_failures.writers.files import file_name
from tests.helpers.results import analysed
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, trainer

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_failures"

NAMES = [
    "../../../escaped",
    "/etc/passwd",
    "..\\..\\windows",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/x.png)",
    "[click](javascript:alert(1)) www.evil.example me@evil.example",
    "http://evil.example | <http://evil.example>",
    "a | b || c",
    "two\nlines\r\nand\ttabs\x0b\x0c\x1c\x85\u2028\u2029",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J",
    "left\u202eright\u2066\u200f",
    "nul\0nul",
    "lone \udcff surrogate",
    "lone \udcfe surrogate",
    "🙂🏳️\u200d🌈",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "Cat",
    "cat",
    "caf\u00e9",
    "cafe\u0301",
    "CON",
    "NUL.png",
    "",
    " ",
    ".",
    "..",
    "-",
    "`code` $math$ ~~s~~ # head\n# head",
    "'; DROP TABLE classes; --\"",
    "=HYPERLINK(\"http://evil.example\")",
    "&lt;b&gt; &#60;script&#62;",
]  # fmt: skip
TEXTS = st.text(max_size=40) | st.text("<>[]()!|*_`\\/.:@w\n\x1b\u202e\udcffaA", max_size=30) | st.sampled_from(NAMES)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


# --------------------------------------------------------------------------------------------------- names, one by one


def folded(names):
    """Return names as a case-insensitive file system with normalised accents compares them."""
    return [unicodedata.normalize("NFC", name).casefold() for name in names]


@settings(deadline=None, max_examples=150)
@given(TEXTS, TEXTS)
def test_names__differ_where_texts_differ_and_stay_in_their_folder(one, other):
    for text in (one, other):
        for name in (file_name(text), file_name(f"classes/{tag_part(text)}")):
            assert re.fullmatch(r"[A-Za-z0-9_=-]{1,90}", name)
        part = tag_part(text)
        assert not re.search(r"[/\\<>|\"']", part)
        assert not CONTROL.search(part)
        assert len(part) <= 100
        key = safe_name(text)
        assert key not in ("", ".", "..")
        assert re.fullmatch(r"[\w.=-]{1,80}", key)
    if one != other:
        assert tag_part(one) != tag_part(other)
        files = [file_name(f"classes/{tag_part(text)}") for text in (one, other)]
        assert len(set(folded(files))) == 2


def test_names__that_look_like_made_ones():
    """A name made to imitate the unique form of another name does not collide with it."""
    made = tag_part("../x")
    assert tag_part(made) != made
    stolen = file_name("classes/🙂").removeprefix("classes-")
    assert file_name(f"classes/{stolen}") != file_name("classes/🙂")


@settings(deadline=None, max_examples=200)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_keys__one_for_each_class(names):
    report = FailureReport(9, 0.5, tuple(ClassReport(name, 9, accuracy=0.5) for name in names))
    keys = worst_class_values(report, k=len(names))
    assert len(keys) == len(names)
    assert all(re.fullmatch(r"class/[^/\s]+/accuracy", key) for key in keys)


# ------------------------------------------------------------------------------------------------------ Markdown, HTML

PLAIN = {
    "h1",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "p",
    "h3",
    "br",
    "em",
    "strong",
    "ul",
    "ol",
    "li",
    "hr",
    "code",
}


class Tags(HTMLParser):
    """Collects the tags of a document and their targets."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets, self.cells = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for key, value in attributes if key in ("src", "href")]
        assert not [key for key, _ in attributes if key.startswith("on")]
        if tag == "tr":
            self.cells.append(0)
        elif tag in ("td", "th"):
            self.cells[-1] += 1


def rendered(text):
    """Return the HTML of TensorBoard's Markdown library and, where installed, of a CommonMark library."""
    yield markdown.markdown(text, extensions=["tables"])
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        return
    yield MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def examined(text):
    for page in rendered(text):
        tags = Tags()
        tags.feed(page)
        tags.close()
        yield tags


def test_rendered__can_find_something():
    bad = "| a |\n| --- |\n| <script>x</script> ![x](http://evil.example) |"
    for tags in examined(bad):
        assert {"script", "img"} <= tags.tags
        assert tags.targets == ["http://evil.example"]


def hostile_report(names, captions=("a photo of a cat",)):
    """Return a report in which every text is hostile."""
    leaf = LeafReport(names[0], 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))
    classes = tuple(
        ClassReport(
            name, 40, accuracy=0.5, cv_score=0.9, p_value=0.001, pattern=True, hardest_captions=tuple(captions),
            easiest_captions=(name,), enrichment=(ValueReport(name, name, 9, 8, 8, 3, 0.2, 0.8, 0.8, (0.5, 0.9), 0.3),),
            slices=(SliceReport(name, name, name, 9, 8, 0.8, (0.5, 0.9), 0.2, 0.6, (0.3, 0.7), 0.001, True),),
            mistaken_for=(MistakenReport(name, 9, 0.9),),
            flagged_mistaken_for=FlaggedConfusionReport(name, 9, 0.9, 0.1, 0.001),
        )
        for name in names
    )  # fmt: skip
    groups = tuple(GroupReport("label", name, 40, 0.5, 0.7, 0.6, 0.1, 0.02, True, None, (leaf,)) for name in names)
    skipped = (ClassReport("skipped", 3, skipped=names[-1]),)
    rows = [{"class": name, "flagged": 3, "reason": name} for name in names]
    acted = {
        "kind": "Upweight",
        "epoch": 3,
        "flagged": 3,
        "changes_training": True,
        "classes": rows,
        "verdict": names[0],
    }
    features = tuple(FeatureReport(17, (name,), (1,), name, 0.4, 2.5, name, "spurious", name) for name in names)
    modes = tuple(ModeReport(name, name, "growing", 0, 3, size=9, examples=40, caption=name) for name in names)
    return FailureReport(
        83, 0.7, classes + skipped, groups, features, modes, interventions=(acted,), epoch=3, notes=tuple(names)
    )


def check_page(text, pictures=()):
    pages = list(examined(text))
    for tags in pages:
        assert tags.tags <= PLAIN | ({"img"} if pictures else set())
        assert all(re.fullmatch(r"images/[\w=-]+\.png", target) for target in tags.targets)
    return pages


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_markdown__shows_any_text_and_interprets_none(names):
    text = classes_markdown(hostile_report(names, names))
    assert not CONTROL.search(text)
    for tags in check_page(text):
        assert tags.cells == [13] * (len(names) + 2)  # head, classes, the skipped one


@settings(deadline=None, max_examples=150)
@given(TEXTS)
def test_escape_markdown__reads_as_it_was_written(text):
    assert not re.search(r"https?://|www\.|\S@\S", escape_markdown(text), re.IGNORECASE)  # GitHub would link these
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        return
    page = MarkdownIt("commonmark").enable("table").render(f"| a |\n| --- |\n| {escape_markdown(text)} |")
    shown = re.search(r"<td>(.*?)</td>", page, re.DOTALL)
    assert html.unescape(shown[1] if shown else "").strip() == clean(text)


def test_report_md__of_hostile_names(tmp_path):
    report = hostile_report(NAMES, NAMES)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    drawn = [Picture(f"classes/{tag_part(name)}", (Row(name, (Tile(image),)),), name) for name in NAMES]
    folder = tmp_path / "in" / "failures"
    FileWriter(folder).write(AnalysisResult(report), 250)
    FileWriter(folder).show(AnalysisResult(report), Gallery(tuple(drawn)), 250)
    here = folder / "epoch=0003-step=000250"
    check_page((here / "report.md").read_text(encoding="utf-8"), drawn)
    files = [path.name for path in (here / "images").iterdir()]
    assert len(set(folded(files))) == len(NAMES)
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    texts = {"report.json", "epoch=0003-step=000250/report.json", "epoch=0003-step=000250/report.md"}
    texts |= {"gallery.json", "report.html"}
    images = {f"epoch=0003-step=000250/images/{name}" for name in files}
    assert everything == {f"in/failures/{name}" for name in texts | images}
    again = FailureReport.from_json((folder / "report.json").read_bytes())
    assert [entry.name for entry in again.classes][: len(NAMES)] == NAMES  # as they were, lone surrogates too


def test_csv__reads_back_as_one_row_a_class(tmp_path):
    names = [*NAMES, "\r", "a\r\nb", '"', "x" * 200_000]
    for step in (1, 2, 2):  # an existing file is read, and a repeated step replaced
        CSVWriter(tmp_path).write(analysed(9, 0.5, tuple(ClassReport(name, 9) for name in names)), step)
    with (tmp_path / "failure_classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(names)
    assert [row["examples"] for row in rows] == ["9"] * len(rows)
    assert not any("\r" in row["name"] or "\0" in row["name"] for row in rows)


# ------------------------------------------------------------------------------------------------------------ terminal


@settings(deadline=None, max_examples=100)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_class_table__one_line_a_class_and_no_control_characters(names):
    table = class_table(hostile_report(names, names))
    assert not CONTROL.search(table)
    assert len(table.split("\n")) == len(names) + 2


def test_report_command__prints_no_control_characters(tmp_path, capsys):
    (tmp_path / "report.json").write_bytes(hostile_report(NAMES, NAMES).to_json().encode("utf-8", "backslashreplace"))
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Upweight" in shown
    assert not CONTROL.search(shown)


def test_report_command__an_error_has_none_either(tmp_path, capsys):
    place = tmp_path / "\x1b[31m"
    place.mkdir()
    (place / "report.json").write_text("{")
    assert main(["report", str(place)]) == 1
    shown = capsys.readouterr()
    assert "is not a report" in shown.err
    assert not CONTROL.search(shown.err + shown.out)


def test_class_picture__any_name():
    images = torch.zeros(2, 3, 8, 8)
    for name in NAMES:
        entry = ClassReport(name, 9, accuracy=0.5, pattern=True, hardest_captions=(name,), easiest_captions=(name,))
        picture = class_picture(entry, images, images, hardest_texts=[name, name], easiest_texts=[name, name])
        assert picture.image.shape[0] == 3
        assert not CONTROL.search(picture.tag + picture.caption)


# -------------------------------------------------------------------------------------- a whole run with three loggers

SECRETS = {
    "WANDB_API_KEY": "1234567890abcdef1234567890abcdefdeadbeef",
    "HF_TOKEN": "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",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY99",
    "DATABASE_PASSWORD": "correct-horse-battery-staple-7",
}
CLASSES = [NAMES[0], NAMES[3], NAMES[10], NAMES[16]]  # a path, HTML, escapes of a terminal, 10,000 characters
TWINS = [NAMES[17], NAMES[13], NAMES[14], NAMES[12]]  # one that differs in its last character, lone surrogates, NUL


class Hostile(Images):
    """Images with hostile class names and attribute values."""

    def __init__(self, names, size=160, seed=0):
        super().__init__(size, classes=4, seed=seed)
        self.classes = names
        self.camera = [NAMES[5] if dark else NAMES[9] for dark in self.dark.tolist()]


class Speaking(ColourEncoder):
    """An encoder that embeds texts too, so that reports have captions."""

    def encode_texts(self, texts):
        seeds = [sum(text.encode("utf-8", "replace")) for text in texts]
        return torch.stack([torch.randn(12, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class Failing(OracleClassifier):
    """A model whose second validation cannot be analysed."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)
        return {"logits": torch.zeros(3)} if self.current_epoch == 1 else None


@pytest.fixture(scope="module", params=["classes", "twins"])
def run(request, tmp_path_factory):
    """A training with all writers: its folder, class names, callback and output."""
    place = tmp_path_factory.mktemp("run")
    names = {"classes": CLASSES, "twins": TWINS}[request.param]
    root = place / "deep" / "deeper" / "root"
    vocabulary = CaptionVocabulary(adjectives=(NAMES[4], NAMES[5], NAMES[1], "red"), prepositions=(NAMES[10],))
    patch = pytest.MonkeyPatch()
    for key, value in SECRETS.items():
        patch.setenv(key, value)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    root.mkdir(parents=True)
    patch.chdir(root)
    import wandb

    loggers = [
        TensorBoardLogger(root, name="board", version="v"),
        CSVLogger(root, name="csv", version="v"),
        WandbLogger(save_dir=root, offline=True, settings=wandb.Settings(silent=True, disable_git=True)),
    ]
    failures = callback(
        encoder=Speaking(), robust_encoder=ColourEncoder("robust"), captions=vocabulary, metadata=["camera"],
        cache_folder=root / "cache", on_error="warn", worst_k=4, pictures=True,
    )  # fmt: skip
    options = {"logger": loggers, "max_epochs": 3, "log_every_n_steps": 1}
    data = [torch.utils.data.DataLoader(Hostile(names, seed=seed), batch_size=16) for seed in (0, 1)]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(root, failures, **options).fit(Failing(), *data)
    finally:
        wandb.finish()
        patch.undo()
    said = [str(warning.message) for warning in caught if "FailureModes" in str(warning.message)]
    return place, names, failures, said


@pytest.mark.slow
def test_run__every_logger_has_everything(run):
    """An error of the second analysis is reported; nothing else is missing."""
    place, names, failures, said = run
    root = place / "deep" / "deeper" / "root"
    assert len(said) == 1, said
    assert "skips this analysis" in said[0]
    assert not CONTROL.search(said[0])
    report = failures.last_report
    assert [entry.name for entry in report.classes] == names
    assert any(entry.pattern for entry in report.classes)
    assert any(entry.hardest_captions for entry in report.classes)
    assert any(entry.enrichment for entry in report.classes)

    pictures = list((root / "board" / "v" / "failures" / "epoch=0002-step=000030" / "images").iterdir())
    assert len([path for path in pictures if path.name.startswith("classes-")]) == 4
    media = list(root.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert len(media) == len(pictures)
    for path in [*pictures, *media]:
        Image.open(path).load()


@pytest.mark.slow
def test_run__files_stay_in_their_folder(run):
    place, *_ = run
    root = place / "deep" / "deeper" / "root"
    files = [path for path in place.rglob("*") if not path.is_dir()]
    outside = [path for path in files if root not in path.parents]
    assert outside == []
    assert {path.relative_to(root).parts[0] for path in files} == {"board", "csv", "wandb", "cache"}
    ours = [str(path.relative_to(root)) for path in files if "failures" in path.parts]
    assert len(ours) >= 15
    assert [path for path in ours if not re.fullmatch(r"[\w .=+()/-]+", path)] == []


@pytest.mark.slow
def test_run__tables_keep_their_shape(run):
    place, names, *_ = run
    root = place / "deep" / "deeper" / "root"
    with (root / "csv" / "v" / "failure_classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [len(row) for row in rows] == [len(CLASS_COLUMNS)] * (1 + 2 * 4)
    with (root / "csv" / "v" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        metrics = list(csv.reader(file))
    assert len({len(row) for row in metrics}) == 1
    assert len([key for key in metrics[0] if re.fullmatch(r"failures/class/[\w.=-]+/accuracy", key)]) == 4
    tables = list(root.glob("wandb/offline-run-*/files/media/table/failures/table_*.table.json"))
    assert len(tables) == 2
    for path in tables:
        table = json.loads(path.read_text())
        shown = sorted(row[table["columns"].index("class")] for row in table["data"])
        assert shown == sorted(name.encode("utf-8", "backslashreplace").decode() for name in names)
    pages = list(root.glob("board/v/failures/*/report.md"))
    assert len(pages) == 2
    for path in pages:
        check_page(path.read_text(encoding="utf-8"), ["some"])


@pytest.mark.slow
def test_run__tags_and_texts_of_the_event_file(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place, *_ = run
    accumulator = EventAccumulator(str(place / "deep" / "deeper" / "root" / "board" / "v"), {"tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    ours = [tag for kind in ("scalars", "images", "tensors") for tag in tags[kind] if tag.startswith("failures")]
    assert len([tag for tag in tags["images"] if tag.startswith("failures/classes/")]) == 4
    assert all(re.fullmatch(r"failures(/[\w .=+()-]+)+", tag) for tag in ours), ours
    texts = [
        value.tensor_proto.string_val[0].decode()
        for tag in tags["tensors"]
        if tag.startswith("failures")
        for value in accumulator.Tensors(tag)
    ]
    assert len(texts) >= 4
    for text in texts:
        check_page(text)
        assert not CONTROL.search(text)


def leaks(folder):
    """Return the files that contain a secret."""
    return {
        (path.name, key)
        for path in folder.rglob("*")
        if path.is_file()
        for key, value in SECRETS.items()
        if value.encode() in path.read_bytes()
    }


@pytest.mark.slow
def test_run__tells_no_secret(run):
    place, _, _, said = run
    assert leaks(place) == set()
    assert not any(value in text for value in SECRETS.values() for text in said)
    (place / "careless.txt").write_text(f"token={SECRETS['HF_TOKEN']}")
    assert leaks(place) == {("careless.txt", "HF_TOKEN")}  # this test can fail
    (place / "careless.txt").unlink()


@pytest.mark.slow
def test_run__the_command_shows_it(run, capsys):
    place, *_ = run
    assert main(["report", str(place / "deep" / "deeper" / "root" / "board" / "v")]) == 0
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    assert not any(value in shown for value in SECRETS.values())


# ----------------------------------------------------------------------------------------------- files that carry code


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Trick:
    """An object that makes ``torch.load(weights_only=True)`` raise a TypeError."""

    def __reduce__(self):
        return OrderedDict, (), (None, {"a": 1})


@pytest.fixture
def marker(tmp_path):
    """The file that a payload writes, after a check that the payload works."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


def armed(marker):
    """Return files that run code when they are unpickled, by format."""

    class Module(torch.nn.Module):
        def __reduce__(self):
            return Payload(marker).__reduce__()

    def saved(value, **options):
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    return {
        "pickle": pickle.dumps({"model": Payload(marker)}),
        "dictionary": saved({"model": {"layer1.0.conv1.weight": Payload(marker)}}),
        "before zip": saved({"model": Payload(marker)}, _use_new_zipfile_serialization=False),
        "module": saved(Module()),
        "trick": pickle.dumps([Trick(), Payload(marker)], protocol=2),
    }


FORMS = ["pickle", "dictionary", "before zip", "module", "trick"]


@pytest.fixture
def careless(monkeypatch):
    """Make unsafe loading the default, as in torch before 2.6."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("careless")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_robust_encoder__runs_no_code(tmp_path, marker, form, suffix):
    path = tmp_path / f"robust{suffix}"
    path.write_bytes(armed(marker)[form])
    with pytest.raises(EncoderError, match=r"refused|cannot be read"):
        RobustEncoder(path)
    with pytest.raises(EncoderError):
        load_encoder(path, robust=True)


def clip_folder(place):
    """Copy the packaged CLIP to a folder."""
    shutil.copytree(CLIP_FOLDER, place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dictionary", "trick"])
@pytest.mark.usefixtures("careless")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_open_clip__runs_no_code_of_a_checkpoint(tmp_path, marker, form):
    folder = clip_folder(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(armed(marker)[form])
    with pytest.raises(EncoderError, match="refused"):
        OpenCLIPEncoder(f"local-dir:{folder}")


@pytest.mark.usefixtures("careless")
@pytest.mark.filterwarnings("ignore")
def test_open_clip__its_own_door_would_have_been_open(tmp_path):
    """The test above can fail: open_clip by itself runs the payload."""
    from open_clip.factory import load_state_dict

    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps([Trick(), Payload(tmp_path / "ran")], protocol=2))
    with pytest.raises(Exception):  # noqa: B017, PT011 - any error
        load_state_dict(path, weights_only=True)
    assert (tmp_path / "ran").exists()


def test_open_clip__runs_no_code_of_a_tokenizer(tmp_path, marker, monkeypatch):
    """Return a configuration that makes transformers import a Python file of the folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = clip_folder(tmp_path / "clip")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    path.write_text(json.dumps(config))
    names = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(EncoderError, match="would run code"):
        OpenCLIPEncoder(str(folder))


def test_generator__runs_no_code_of_a_folder(tmp_path, marker):
    pytest.importorskip("diffusers")
    from lightning_failures.generators.load import load_generator

    code = f"open({str(marker)!r}, 'w').close()\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(code)
    for number, (kind, part) in enumerate([(["evil", "Evil"], None), ("StableDiffusionPipeline", "mine")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "unet": [part, "Evil"]}))
        if part is None:
            (folder / "evil.py").write_text(code)
        else:
            (folder / "unet").symlink_to(elsewhere)  # a recursive search does not follow links
        with pytest.raises(GeneratorError, match="its own code"):
            load_generator(folder).generate(["x"], [0])


def test_directions_and_vocabulary__run_no_code(tmp_path, marker):
    path = tmp_path / "directions.safetensors"
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match="no failure directions"):
        FailureDirections.load(path)
    for text in (
        f"!!python/object/apply:os.mknod ['{marker}']",
        f"adjectives: !!python/object/new:os.system ['touch {marker}']",
        "classes: !!python/name:os.system",
        f"template: !!python/object/apply:subprocess.check_output [['touch', '{marker}']]",
    ):
        (tmp_path / "words.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match="is not valid YAML"):
            CaptionVocabulary.load(tmp_path / "words.yaml")
        with pytest.raises(yaml.YAMLError):
            yaml.safe_load(text)


# --------------------------------------------------------------------------------------------------- the source itself

UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "subprocess",
    "runpy",
    "ctypes",
    "pty",
}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv",
    "importlib.import_module", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "pd.read_pickle", "joblib.load", "np.load", "numpy.load", "tempfile.mktemp",
}  # fmt: skip
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "custom_pipeline", "shell"}
EXCUSED = {
    (
        "report/html/library.py",
        "import subprocess",
    ): "this very Python, with a line of ours, to bundle the charts' library",
    ("report/feature_names.py", "yaml.load(text, _Loader)"): "a SafeLoader that refuses aliases too",
    ("trainer/ranks.py", "import pickle"): "between the processes of one run, as torch.distributed does",
    (
        "stats/kernels/__init__.py",
        "import pickle",
    ): "the length of a pickled version; numba reads its own cache, as Python .pyc",
}


def unsafe(source: str) -> set[str]:
    """Return the calls of a source that may run code from a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {f"import {one.name}" for one in node.names if one.name.split(".")[0] in UNSAFE_MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.add(f"import {node.module}")
        elif isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}
            flag = options.get("weights_only")
            careless = called == "torch.load" and not (isinstance(flag, ast.Constant) and flag.value is True)
            if called in UNSAFE_CALLS or options.keys() & UNSAFE_KEYWORDS or careless:
                found.add(ast.unparse(node))
    return found


def test_source__runs_nothing_from_files():
    found = {
        (str(path.relative_to(PACKAGE)), what) for path in PACKAGE.rglob("*.py") for what in unsafe(path.read_text())
    }
    assert found - EXCUSED.keys() == set()
    assert EXCUSED.keys() - found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from subprocess import run",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text, Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "np.load(path)",
    ],
)
def test_source__this_test_can_fail(source):
    assert len(unsafe(source)) == 1
    assert (
        unsafe("torch.load(path, map_location='cpu', weights_only=True)\nyaml.safe_load(text)\nmodel.eval()") == set()
    )


# ------------------------------------------------------------------------------------------------- configuration files


@pytest.fixture
def _quiet(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as the command does


def parser():
    from jsonargparse import ArgumentParser

    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(FailureModes, "modes")
    return made


@pytest.mark.usefixtures("_quiet")
def test_config__strings_stay_strings(marker, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    for text in (
        f"__import__('os').system('touch {marker}')",
        f"$(touch {marker})",
        f"`touch {marker}`",
        "${oc.env:WANDB_API_KEY}",
        "$WANDB_API_KEY",
        "{{ 7 * 7 }}",
    ):
        given = {"captions": text, "encoder": text, "robust_encoder": text, "logits_from": text, "class_names": [text]}
        config = parser().parse_object({"modes": given})
        made = parser().instantiate_classes(config).modes
        assert (made.captions, made.encoder, made.robust_encoder, made.class_names) == (text, text, text, (text,))


@pytest.mark.usefixtures("_quiet")
def test_config__yaml_makes_no_objects(marker):
    from jsonargparse import ArgumentError

    for key in ("captions", "encoder", "read_batch", "metadata", "interventions", "seed"):
        for tag in ("object/apply:os.mknod", "object/new:os.mknod"):
            with pytest.raises((ArgumentError, yaml.YAMLError)):
                parser().parse_string(f"modes:\n  {key}: !!python/{tag} ['{marker}']\n")


@pytest.mark.usefixtures("_quiet")
def test_config__a_class_must_be_of_the_type_of_its_option(marker):
    """``class_path`` names a class; one that is no encoder, vocabulary or intervention is not instantiated."""
    from jsonargparse import ArgumentError

    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
    for key in ("encoder", "robust_encoder", "captions", "read_batch"):
        with pytest.raises(ArgumentError):
            parser().parse_object({"modes": {key: popen}})
    with pytest.raises(ArgumentError):
        parser().parse_object({"modes": {"interventions": [popen]}})


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    "option",
    ["metadata", "every_n_epochs", "min_coverage", "permutations", "n_directions", "interventions", "on_error"],
)
def test_config__null_is_told_by_name(option):
    """YAML lets any option be null, which is None."""
    with pytest.raises(ConfigurationError, match=option):
        FailureModes(**group_options({option: None}))
    many = AdvancedOptions(permutations=10**400)
    assert FailureModes(advanced=many, every_n_epochs=np.int64(2)).every_n_epochs == 2  # no overflow


@pytest.mark.parametrize("option", ["factor", "max_flagged", "start_epoch", "every_n_epochs"])
def test_config__null_of_an_intervention(option):
    with pytest.raises(ConfigurationError, match=option):
        Upweight(**{option: None})
    assert Upweight(factor=np.float32(2), every_n_epochs=np.int64(3)).every_n_epochs == 3
