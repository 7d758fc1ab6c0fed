"""Broken and hostile files for every reader of the package: only its own errors may come out.

Each input is either random bytes or a valid file that was damaged: bits flipped, cut, spliced, bytes put in; for what
holds JSON or YAML also a value of another type, a huge number, NaN, deep nesting, a key taken away or given twice. What
is read all the same is then used, as the package would use it.

    python benchmarks/fuzz.py --inputs 70000 --output benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.cli.report import diff_text, report_text
from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.findings import Finding, FindingPart, Mistake
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.data.records import (
    ClassHold,
    CounterfactualReport,
    DiagnosisReport,
    SharedPattern,
    ValueReport,
)
from lightning_failures.data.report import (
    ClassReport,
    ConfusionReport,
    ConfusionSplitReport,
    CurvePoint,
    FailureReport,
    FeatureReport,
    FlaggedConfusionReport,
    MistakenReport,
    ModeReport,
    SliceReport,
)
from lightning_failures.data.tree_report import GroupReport, LeafReport, NodeReport
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.frozen import load_tensors, state_dict_of
from lightning_failures.errors import FailureModesError
from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow
from lightning_failures.pools.shards import PoolShard, read_pool_shard, round_to_half, write_pool_shard
from lightning_failures.report.comparison import compare
from lightning_failures.report.feature_names import FeatureNames, with_names
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.gallery_storage import load_gallery, save_gallery
from lightning_failures.report.run_folder import open_run

Read = Callable[[bytes], None]
"""Reads one input and uses what it holds."""


@dataclass
class Door:
    """One reader.

    Attributes:
        valid: Files that it reads.
        read: Writes an input to where the reader looks for it, and lets it read.
        form: How the structure of a valid file can be changed: "json", "lines", "yaml", "safetensors" or "bytes".
        refusals: Errors that may come out.
        deepest: Nesting that is tried. LightningCLI reads YAML with libyaml, which more than some thousands make crash
            before any code of Python, or of this package, is asked.
    """

    valid: list[bytes]
    read: Read
    form: str = "bytes"
    refusals: tuple[type[BaseException], ...] = (FailureModesError,)
    deepest: int = 100_000


@dataclass
class Found:
    """The outcomes of the inputs of one door."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    of_the_parser: int = 0
    slowest_ms: float = 0.0
    growth_mib: float = 0.0
    others: list[str] = field(default_factory=list)


# -------------------------------------------------------------------------------------------------------------- inputs

HUGE = [2**31, 2**60, 2**63, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"), -1, 0, 1.5, -0.0]
ODD = [
    "",
    "\0",
    "\udcff",
    "../" * 9,
    "<script>",
    "x" * 5000,
    "\x1b[31m",
    "0",
    "null",
    "{}",
    [],
    {},
    None,
    True,
    False,
    [[]],
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Damage some bytes."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        if not made:
            return bytes(made)
        at = rng.randrange(len(made))
        kind = rng.randrange(6)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.randrange(256)
        elif kind == 2:
            del made[at : at + rng.choice((1, 8, 64, len(made)))]
        elif kind == 3:
            made[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
        elif kind == 4:
            made[at:at] = made[rng.randrange(len(made)) :][: rng.choice((4, 64))]
        else:
            made[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, (2**60).to_bytes(8, "little")))
    return bytes(made)


DEEPEST_PLACE = 100


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the paths to all values of nested JSON, however deep, from the outside inwards."""
    found: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    for at, one in found:  # grows while it is read
        if len(at) < DEEPEST_PLACE:
            inner = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
            found += [((*at, key), each) for key, each in inner]
    return [at for at, _ in found]


def odd_value(rng: random.Random) -> Any:
    """Return a value that is rarely valid."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(HUGE)
    if kind == 1:
        return rng.choice(ODD)
    if kind == 2:
        deep: Any = 1
        for _ in range(rng.choice((3, 50))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    if kind == 3:
        return {rng.choice(("name", "class", "a", "")): rng.choice(HUGE)}
    return "".join(chr(rng.choice((9, 10, 27, 34, 65, 0x202E, 0x1F642, 0xDCFF))) for _ in range(rng.randrange(9)))


def restructure(rng: random.Random, value: Any) -> Any:
    """Change a value, take one away, exchange two, or add one, anywhere in nested JSON."""
    made = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.choice(places(made))
        if not place:
            return odd_value(rng) if rng.random() < 0.2 else made
        *path, key = place
        inside = made
        for step in path:
            inside = inside[step]
        kind = rng.randrange(5)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[rng.choice((*inside, "of a later version"))] = inside[key]
        elif kind == 2 and isinstance(inside, list):
            inside.insert(0, odd_value(rng))
        else:
            inside[key] = odd_value(rng)
        if not isinstance(made, dict | list) or not made:
            return made
    return made


def as_json(rng: random.Random, value: Any, deepest: int) -> bytes:
    """JSON as others may write it: a key twice, numbers out of range, nested too deep for Python."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(20)
    if kind == 0 and text.startswith("{"):
        text = text[:-1] + "," + text[1:]
    elif kind == 1:
        text = text.replace("1", rng.choice(("1e999", "-1e-999", "1" * 5000, "NaN", "0x1")), 1)
    elif kind == 2:
        text = "[" * deepest + text
    elif kind == 3:
        text = '{"classes":' * min(5000, deepest) + text
    return text.encode("utf-8", "surrogatepass")


YAML = [
    "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "&a [*a]", "*unknown", "? [a]\n: b", "2001-99-99",
    "0x" + "f" * 6000, "1:" * 200 + "1", "[" * 500, "{" * 300, "!!binary x", "!!set {a}", "!!timestamp x",
    "<<: 1", "\t", "---", "!!float .nan", "!!int x", "%YAML 9.9", "&a " * 20, "~", "on", "- " * 500, "'", "|2",
    "\x00", "\ud800", "{}: {}", "{{}}",
]  # fmt: skip


def make_input(rng: random.Random, door: Door) -> bytes:
    """Return one input."""
    valid = rng.choice(door.valid)
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 100, 4000)))
    if kind < 0.4 or door.form == "bytes":
        return mutate(rng, valid)
    if door.form == "json":
        return as_json(rng, restructure(rng, json.loads(valid)), door.deepest)
    if door.form == "lines":
        return b"".join(
            as_json(rng, restructure(rng, json.loads(line)), door.deepest) + b"\n" for line in valid.splitlines()
        )
    if door.form == "yaml":
        if rng.random() < 0.5:
            at = rng.randrange(len(valid) + 1)
            inserted = rng.choice(YAML).encode("utf-8", "surrogatepass")
            return valid[:at] + rng.choice((b"", b" ", b"\n")) + inserted + valid[at:]
        return as_json(rng, restructure(rng, yaml.safe_load(valid)), door.deepest)  # which is YAML too
    length = int.from_bytes(valid[:8], "little")  # safetensors: the header is JSON
    header = as_json(rng, restructure(rng, json.loads(valid[8 : 8 + length])), door.deepest)
    return len(header).to_bytes(8, "little") + header + valid[8 + length :]


# --------------------------------------------------------------------------------------------------------------- doors


def example_report() -> FailureReport:
    """Return a report with a value in every field."""
    value = ValueReport("tint", "red", 9, 8, 8, 3, 0.2, 0.8, 0.8, (0.5, 0.9), 0.3)
    part = SliceReport("tint", "red", "cat", 9, 8, 0.8, (0.5, 0.9), 0.2, 0.6, (0.3, 0.7), 0.001, True, 0.5, (0.2, 0.6))
    leaf = LeafReport("feature 17 > 0.36", 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))
    nodes = NodeReport(40, 20, 0.5, 1.0, (0.4, 0.6), feature=17, threshold=0.36), NodeReport(20, 16, 0.8, 0.7, parent=0)
    found = ClassReport(
        name="cat", examples=40, accuracy=0.9, cv_score=0.8, cv_score_stderr=0.05, p_value=0.001, pattern=True, c=0.1,
        flagged=4, flag_agreement=0.8, gain_share=0.6, strength="strong", effect=0.6, effect_interval=(0.4, 0.7),
        flagged_error_rate=0.8,
        unflagged_error_rate=0.2, failures_flagged=0.7, gain=2.5, doubted=1, doubted_ids=(7,), explained=0.3,
        error_rate_shrunk=0.18, error_rate_interval=(0.1, 0.3), aler=0.3, base_error_rate=0.2,
        reference_caption="a photo of a cat",
        hardest_captions=("a red cat",), hardest_caption_scores=(0.5,), hardest_caption_margins=(2.5,),
        easiest_captions=("a blue cat",), easiest_caption_scores=(0.1,), easiest_caption_margins=(1.5,),
        hardest_caption_attributes=(AttributeEvidence("red", "tint", 9.5, 0.001, 0.81, 0.09),),
        easiest_caption_attributes=(AttributeEvidence("blue", None, 2.5, 0.02, 0.1, 0.3),),
        caption_p_value=0.01, nearest=(CurvePoint(10, 0.2, 0.9),), cv_null_mean=0.5, cv_null_interval=(0.4, 0.6),
        cv_null_permutations=20, agreement=0.6, hardest_ids=(1, 2), hardest_values=(-0.9, -0.8), easiest_ids=(3, 4),
        nearest_hardest_ids=(1, 5), nearest_easiest_ids=(3,),
        easiest_values=(0.9, 0.8), least_confident_ids=(1, 5), least_confident_values=(0.1, 0.2), enrichment=(value,),
        slices=(part,),
        mistaken_for=(MistakenReport("dog", 9, 0.9),),
        flagged_mistaken_for=FlaggedConfusionReport("dog", 9, 0.9, 0.1, 0.001),
        confusion_split=(ConfusionSplitReport("dog", 9, 0.9, 0.8, (0.5, 0.9), 0.1, True),),
        truth={"usual": "red"}, looked_at=30, failures_looked_at=6,
        diagnosis=DiagnosisReport("label noise", 0.8, {"label noise": 0.8}, ("Its labels are odd.",), "doubted_ids"),
        counterfactual=CounterfactualReport("rendered", "confirmed", None, 40, 0.6, 0.1, 0.05, 0.5, (0.3, 0.7)),
    )  # fmt: skip
    shared = SharedPattern(
        examples=40, failures=20, p_value=0.001, pattern=True, cv_score=0.8, cv_score_stderr=0.05, strength="strong",
        effect=0.6, effect_interval=(0.4, 0.7), flagged=4, flagged_error_rate=0.8, unflagged_error_rate=0.2,
        failures_flagged=0.7, gain=2.5, classes=(ClassHold("cat", 0.8, 0.001, True),), too_few=1,
        hardest_captions=("blurry",), hardest_caption_scores=(0.5,), hardest_caption_margins=(2.5,),
        easiest_captions=("sharp",), easiest_caption_scores=(0.1,), caption_p_value=0.01, hardest_ids=(1,),
        values=(value,),
    )  # fmt: skip
    group = GroupReport("label", "cat", 40, 0.5, 0.7, 0.6, 0.1, 0.02, True, None, (leaf,), nodes)
    feature = FeatureReport(17, ("label/cat",), (1, 2), "a red cat", 0.4, 2.5, "red stroke", "spurious", "more tints")
    mode = ModeReport(
        "cat 1", "cat", "growing", since=0, seen=3, missed=1, size=9, examples=40, gained=2, lost=1, left=3, cosine=0.9,
        shared=0.8, caption="a red cat", gain=2.5,
    )  # fmt: skip
    acted = {"kind": "Upweight", "epoch": 3, "flagged": 4, "changes_training": True, "verdict": "not measured"}
    acted["classes"] = [{"class": "cat", "flagged": 4, "reason": None}]
    acted["review"] = [{"id": 1, "class": "a", "predicted": "b", "probability_of_label": 0.1, "neighbours_agreeing": 2}]
    finding = Finding(
        "caption", words="red", parts=(FindingPart("cat", "red", 9, 8, 0.8, 0.2, "dog", 0.9),), examples=9, failures=8,
        error_rate=0.8, interval=(0.5, 0.9), confidence="high", mistakes=(Mistake("cat", "dog", 8, 0.9),),
        failing_ids=(7,), right_ids=(8,),
    )  # fmt: skip
    return FailureReport(
        83, 0.7, (found, ClassReport("dog", 3, skipped="2 failures")), (group,), (feature,), (mode,),
        summary={"cv_score_mean": 0.75}, interventions=(acted,), timings={"total": 0.5}, epoch=3, global_step=250,
        explained=0.4, shared=shared, slices=(part,), confusions=(ConfusionReport("cat", "dog", 9, 0.9),),
        pins=(PinCheck("cat 1", "cat", "open", 9, 4, 0.4, (0.2, 0.7), level=0.1, p_value=0.01, note="a note"),),
        doubtful=True, findings=(finding,),
        stage="fit", notes=("a note",), methods={"age": {"columns": {"mean age": [3.5, None]}}},
    )  # fmt: skip


def config_parser() -> Any:
    """Return a parser of the options of the callback, as LightningCLI reads them."""
    from jsonargparse import ArgumentParser

    from lightning_failures import FailureModes

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FailureModes, "modes")
    return parser


def doors(place: Path) -> dict[str, Door]:
    """Return all readers, with files below a folder."""
    from jsonargparse import ArgumentError

    made: dict[str, Door] = {}
    generator = torch.Generator().manual_seed(0)

    cache = EmbeddingCache(place / "cache")
    keys, values = torch.arange(6).reshape(3, 2), torch.rand(3, 4, generator=generator).half().float()
    store = cache.store("f")
    store.put(keys, values)
    store.flush()
    (shard,) = (place / "cache").rglob("*.safetensors")

    def read_cache(data: bytes) -> None:
        shard.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opened = EmbeddingCache(place / "cache").store("f")
        here = ~opened.missing(keys)
        if here.any() and not torch.equal(opened.get(keys[here]), values[here]):
            raise AssertionError("a wrong embedding")
        if len(caught) > 1 or (not caught and not here.all()):
            raise AssertionError(f"{len(caught)} warnings")
        if caught:
            raise FailureModesError(str(caught[0].message))

    made["cache"] = Door([shard.read_bytes()], read_cache, "safetensors")

    block = PoolShard(torch.arange(3), torch.zeros(3, dtype=torch.long), keys, round_to_half(values), values[:, 0])
    pooled = place / "pool.safetensors"
    write_pool_shard(block, pooled, pool="p")

    def read_pooled(data: bytes) -> None:
        pooled.write_bytes(data)
        read = read_pool_shard(pooled, range(3), pool="p")
        for name in ("ids", "labels", "keys", "embeddings", "values"):
            if (column := getattr(read, name)) is not None and not torch.equal(column, getattr(block, name)):
                raise AssertionError(f"wrong {name}")

    made["pool"] = Door([pooled.read_bytes()], read_pooled, "safetensors", (DamagedShardError,))

    found = place / "report.json"

    def read_report(data: bytes) -> None:
        found.write_bytes(data)
        report_text(open_run(found)).encode("utf-8", "strict")

    made["report"] = Door([example_report().to_json().encode()], read_report, "json")

    pictures = place / "gallery.json"
    tile = Tile(torch.randint(0, 256, (3, 6, 5), generator=generator, dtype=torch.uint8), "seven\n-> one", 7)
    thumbnails = Thumbnails(torch.tensor([3, 7]), torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    save_gallery(
        Gallery((Picture("classes/cat", (Row("hardest", (tile, tile)),), "cat"),), thumbnails, 3, 250), pictures
    )

    def read_pictures(data: bytes) -> None:
        pictures.write_bytes(data)
        read = load_gallery(pictures)
        if any(tile.image.dtype != torch.uint8 for one in read.pictures for row in one.rows for tile in row.tiles):
            raise AssertionError("no image")

    made["gallery"] = Door([pictures.read_bytes()], read_pictures, "json")

    examples = place / "examples.safetensors"
    column = torch.arange(4)
    numbers = torch.linspace(-1, 1, 4)
    ExampleTable(column, column % 2, column // 2, numbers.abs(), numbers, column, column, ("cat", "dog")).save(examples)
    (place / "paired").mkdir()
    (place / "paired" / "report.json").write_text(example_report().to_json())
    (place / "paired" / "examples.safetensors").write_bytes(examples.read_bytes())

    def read_examples(data: bytes) -> None:
        examples.write_bytes(data)
        table = ExampleTable.load(examples)
        whole = open_run(place / "paired")
        diff_text(compare(whole, dataclasses.replace(whole, table=table)), ids=4).encode("utf-8", "strict")

    made["examples"] = Door([examples.read_bytes()], read_examples, "safetensors")

    names = place / "features.yaml"
    called = b'- encoder: "f"\n  feature: 17\n  name: red stroke\n  tag: spurious\n  action: more tints\n'

    def read_names(data: bytes) -> None:
        names.write_bytes(data)
        with_names("feature 17 > 0.36", FeatureNames.load(names, encoder="f").names)

    made["features"] = Door([called], read_names, "yaml")

    x = torch.randn(60, 3, generator=generator)
    fitted = fit_failure_directions(x, torch.arange(60) % 2, x[:, 0] > 0, permutations=9, n_directions=2)
    directions = place / "directions.safetensors"
    fitted.save(directions)

    def read_directions(data: bytes) -> None:
        directions.write_bytes(data)
        loaded = FailureDirections.load(directions)
        loaded.flag(torch.zeros(2, loaded.weight.shape[1]), torch.zeros(2, dtype=torch.long))
        for number in range(2):
            loaded.row(number)

    made["directions"] = Door([directions.read_bytes()], read_directions, "safetensors")

    words = place / "words.yaml"
    vocabulary = (
        b"template: a photo of a {}\nadjectives: [red, blurry]\nprepositions: [in the snow]\n"
        b"classes:\n  dog:\n    nouns: [dog]\n"
    )

    def read_words(data: bytes) -> None:
        words.write_bytes(data)
        loaded = CaptionVocabulary.load(words)
        for name in ("dog", "cat", *loaded.classes):
            loaded.grammar(name).captions()

    made["vocabulary"] = Door([vocabulary], read_words, "yaml")

    ledger = Ledger(place / "ledger")
    row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2, 0.5)
    for number in range(2):
        ledger.append(row, torch.full((3, 8, 8), 9 * number, dtype=torch.uint8))
    lines, picture = place / "ledger" / "ledger.jsonl", place / "ledger" / "images" / "000001.png"

    def read_ledger(data: bytes) -> None:
        lines.write_bytes(data)
        opened = Ledger(place / "ledger")
        for read in opened.rows:
            if LedgerRow.from_dict(read.to_dict()) != read and read.decision_value == read.decision_value:
                raise AssertionError("read back as another row")
        for number in range(len(opened.images)):
            opened.has_image(opened.row_of_image(number))

    made["ledger"] = Door([lines.read_bytes()], read_ledger, "lines")

    whole = lines.read_bytes()

    def read_picture(data: bytes) -> None:
        lines.write_bytes(whole)
        picture.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if Ledger(place / "ledger").image(1).dtype != torch.uint8:
                raise AssertionError("no image")

    made["generated image"] = Door([picture.read_bytes()], read_picture)

    tensors = {"layer1.0.conv1.weight": torch.rand(2, 2), "fc.weight": torch.rand(2, 2)}
    pickled, before_zip = io.BytesIO(), io.BytesIO()
    torch.save({"model": tensors}, pickled)
    torch.save({"model": tensors}, before_zip, _use_new_zipfile_serialization=False)

    def reads(name: str) -> Read:
        path = place / name

        def read(data: bytes) -> None:
            path.write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state_dict_of(load_tensors(path), path)

        return read

    made["weights, safetensors"] = Door([save(tensors)], reads("x.safetensors"), "safetensors")
    made["weights, torch.save"] = Door([pickled.getvalue(), before_zip.getvalue()], reads("x.pt"))

    parser = config_parser()
    options = {
        "encoder": "embedded:digits", "captions": "digits", "class_names": ["a", "b"], "task": "binary",
        "metadata": ["a"], "normalization": [[0.5], [0.5]], "every_n_epochs": 2, "min_coverage": 0.5, "permutations": 9,
        "seed": 3, "device": "cpu",
        "interventions": [{"class_path": "lightning_failures.interventions.Upweight", "init_args": {"factor": 2.0}}],
    }  # fmt: skip

    def read_config(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.instantiate_classes(parser.parse_string(data.decode("utf-8", "replace")))

    refusals = (FailureModesError, ArgumentError)
    made["config"] = Door([yaml.safe_dump({"modes": options}).encode()], read_config, "yaml", refusals, deepest=300)
    return made


# ----------------------------------------------------------------------------------------------------------------- run


def memory() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def fuzz(door: Door, inputs: int, seed: int) -> Found:
    """Try a number of inputs on one door."""
    rng, found = random.Random(seed), Found()
    for valid in door.valid:
        door.read(valid)  # a door that reads nothing shows nothing
    for _ in range(inputs):
        data = make_input(rng, door)
        before, start = memory(), time.process_time()
        try:
            door.read(data)
            found.read += 1
        except door.refusals:
            found.refused += 1
        except Exception as error:
            if door.form == "yaml" and not passed_through_us(error):
                found.of_the_parser += 1
                continue
            found.others.append(f"{traceback.format_exc(limit=-3)}\n{data[:300]!r}")
        finally:
            found.inputs += 1
            found.slowest_ms = max(found.slowest_ms, 1000 * (time.process_time() - start))
            found.growth_mib = max(found.growth_mib, memory() - before)
    return found


def passed_through_us(error: BaseException) -> bool:
    """Return whether a function of the package was called; otherwise the error is jsonargparse's own."""
    return any(
        "lightning_failures" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)
    )


def run(inputs: int, seed: int = 0, only: str | None = None) -> dict[str, Found]:
    """Try a number of inputs, distributed over all doors."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: door for name, door in doors(Path(folder)).items() if only in (None, name)}
        each = -(-inputs // len(made))
        return {name: fuzz(door, each, seed + number) for number, (name, door) in enumerate(made.items())}


def main() -> None:
    """Run, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=70_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one door")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    torch.set_num_threads(1)
    found = run(arguments.inputs, arguments.seed, arguments.only)
    heads = ("inputs", "read", "refused", "parser", "other errors", "slowest, ms", "memory, MiB")
    print(f"{'reader':<22}" + "".join(f"{head:>13}" for head in heads))
    for name, one in found.items():
        counts = (one.inputs, one.read, one.refused, one.of_the_parser, len(one.others))
        numbers = [*map(str, counts), f"{one.slowest_ms:.0f}", f"{one.growth_mib:.1f}"]
        print(f"{name:<22}" + "".join(f"{number:>13}" for number in numbers))
    for name, one in found.items():
        for text in one.others[:3]:
            print(f"\n{name}: {text}", file=sys.stderr)
    if arguments.output:
        total = {
            key: sum(getattr(one, key) for one in found.values())
            for key in ("inputs", "read", "refused", "of_the_parser")
        }
        total["others"] = sum(len(one.others) for one in found.values())
        versions = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}
        about = {"inputs": arguments.inputs, "seed": arguments.seed, **versions}
        values = {"about": about, "total": total, "readers": {name: vars(one) for name, one in found.items()}}
        arguments.output.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
