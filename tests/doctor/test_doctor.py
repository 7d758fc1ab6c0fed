"""Doctor: what is broken on purpose is found, what is in order is said to be, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes
from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.cli import main
from lightning_failures.data.grades import BatchRecord
from lightning_failures.doctor import CHECKS, Finding, data, examine
from lightning_failures.doctor.caption_checks import check_captions
from lightning_failures.doctor.costs import Cost, check_cache, check_memory, check_time, estimate
from lightning_failures.doctor.data import check_batches, check_examples, check_processes, graded_once
from lightning_failures.doctor.dry_run import CheckContext, check_rehearsal, options_of
from lightning_failures.doctor.encoders import check_encoder, check_robust_encoder, examine_encoder
from lightning_failures.doctor.environment import (
    check_loggers,
    check_monitors,
    check_schedule,
    check_versions,
    judge_versions,
)
from lightning_failures.doctor.findings import WIDTH, ok, problem, table_lines, told
from lightning_failures.doctor.images import NORMALIZATIONS, check_images, in_words, matching_normalization
from lightning_failures.doctor.interventions import check_interventions
from lightning_failures.doctor.reference_images import coloured_digits, plain_shapes, zero_shot_accuracy
from lightning_failures.encoders import OpenCLIPEncoder
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.interventions import Upweight
from lightning_failures.trainer.options import group_options
from tests.helpers.toy import NORMALIZE, Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.yaml"


class Data(L.LightningDataModule):
    def __init__(self, *loaders, train=None) -> None:
        super().__init__()
        self.loaders, self.train = list(loaders) or [loader()], train

    def val_dataloader(self):
        return self.loaders if len(self.loaders) > 1 else self.loaders[0]

    def train_dataloader(self):
        return loader(shuffle=True) if self.train is None else self.train


class Silent(OracleClassifier):
    """Has no loss that would stumble over a label."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])


def case(tmp_path, *loaders, model=None, train=None, callbacks=(), around=None, **options) -> CheckContext:
    """``options`` are those of FailureModes, ``around`` those of the Trainer."""
    modes = callback(**options)
    folder = tmp_path / "thrown away"
    folder.mkdir(exist_ok=True)
    made = trainer(tmp_path, modes, *callbacks, **(around or {}))
    return CheckContext(made, model or OracleClassifier(), Data(*loaders, train=train), modes, folder)


def read(*arguments, **options) -> CheckContext:
    """A case whose encoder is loaded and whose batches are read, whatever was found."""
    made = case(*arguments, **options)
    list(check_encoder(made))
    list(told("batches", check_batches, made))
    return made


def only(findings, status: str) -> Finding:
    """The one finding of a status."""
    (found,) = [one for one in findings if one.status == status]
    return found


def statuses(findings) -> list[str]:
    return [one.status for one in findings]


# -- findings ------------------------------------------------------------------------------------------------


def test_told__an_error_of_a_check_is_a_problem_and_what_was_found_before_stays():
    def check(subject):
        yield ok("so far so good")
        raise ZeroDivisionError(subject)

    first, second = told("sums", check, "by nought")
    assert (first.check, first.status) == ("sums", "ok")
    assert (second.check, second.status, second.message) == ("sums", "problem", "ZeroDivisionError: by nought")


@settings(max_examples=25)
@given(st.text(max_size=300), st.text(max_size=100))
def test_table_lines__whatever_is_said_fits_and_is_printable(message, remedy):
    lines = table_lines(problem(message, remedy))
    assert all(len(line) <= WIDTH and line.isprintable() for line in lines)
    assert lines[0].startswith("problem")


# -- environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_versions__malicious_releases_are_told(name, version):
    found = only(judge_versions({name: version}, []), "problem")
    assert f"{name} {version}" in found.message
    assert statuses(judge_versions({name: "2.6.1"}, [])) == ["ok"]


def test_versions__requirements_of_extras_do_not_count():
    required = ['timm>=1.0; extra == "timm"', "torch>=2.4", "not-there>=1"]
    found = only(judge_versions({"torch": "2.3.1"}, required), "problem")
    assert "torch>=2.4 (here: 2.3.1)" in found.message
    assert "not-there>=1 (here: not installed)" in found.message
    assert "timm" not in found.message


def test_versions__classes_of_the_other_namespace_are_told(tmp_path):
    import pytorch_lightning

    class Stranger(pytorch_lightning.Callback):
        pass

    made = case(tmp_path)
    assert statuses(check_versions(made)) == ["ok"]
    made.trainer.callbacks.append(Stranger())
    assert "Stranger" in only(check_versions(made), "problem").message


@pytest.mark.parametrize(
    ("key", "mode", "status"),
    [
        ("failures/cv_score_mean", "min", "ok"),
        ("failures/cv_score_mean", "max", "warning"),
        ("failures/accuracy", "min", "warning"),
        ("failures/class/cat/accuracy", "min", "ok"),
        ("failures/cv_score_meen", "min", "problem"),
        ("failures/valid_leaf_fraction", "min", "problem"),
        ("val_loss", "max", "ok"),
    ],
)
def test_monitors__wrong_keys_and_wrong_directions(tmp_path, key, mode, status):
    stopping = EarlyStopping(monitor=key, mode=mode)
    found = list(told("monitors", check_monitors, case(tmp_path, callbacks=[stopping])))
    assert found[0].status == status
    assert status == "ok" or key in found[0].message


def test_monitors__two_callbacks_would_log_the_same_keys(tmp_path):
    found = told("monitors", check_monitors, case(tmp_path, callbacks=[callback(encoder=ColourEncoder("others"))]))
    assert "Only one FailureModes" in only(found, "problem").message


def test_schedule__never_and_too_little(tmp_path):
    never = case(tmp_path, every_n_epochs=5, around={"max_epochs": 4})
    assert "No analysis in 4 epochs" in only(check_schedule(never), "warning").message
    some = read(tmp_path, around={"limit_val_batches": 2})
    assert "20%" in only(check_schedule(some), "warning").message
    none = case(tmp_path, around={"limit_val_batches": 0})
    assert statuses(check_schedule(none)) == ["problem"]
    every_second = case(tmp_path, every_n_epochs=2, around={"max_epochs": 9})
    assert only(check_schedule(every_second), "ok").facts == {"analyses": 4}


def test_loggers__each_says_what_it_holds(tmp_path):
    class Unknown(Logger):
        name, version = "unknown", 0

        def log_metrics(self, metrics, step=None):
            raise AssertionError("nothing may be logged")

        log_hyperparams = log_metrics

    loggers = [
        TensorBoardLogger(tmp_path),
        CSVLogger(tmp_path),
        WandbLogger(offline=True, save_dir=tmp_path),
        Unknown(),
    ]
    made = read(tmp_path, around={"logger": loggers, "max_epochs": 200}, pictures=True, pictures_every_n=5)
    texts = [one.message for one in check_loggers(made)]
    assert "TensorBoard: at most 25 scalars and 4 pictures" in texts[1]
    assert "about 10 of the 41 drawings" in texts[1]
    assert "up to 1,000 examples in the projector" in texts[1]
    assert texts[2].startswith("CSV")
    assert "no pictures" in texts[2]
    assert texts[3].startswith("W&B (offline")
    assert "up to 500 examples in a table" in texts[3]
    assert only(check_loggers(made), "warning").message.startswith("Unknown gets up to 25 scalars")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thrown away"]  # not even a folder of a logger


def test_loggers__too_many_pictures_for_wandb(tmp_path):
    classes = [str(k) for k in range(60)]
    many = case(
        tmp_path,
        DataLoader(Images(classes=60), batch_size=80),
        model=Classifier(classes=60),
        class_names=classes,
        worst_k=60,
        pictures=True,
        robust_encoder=ColourEncoder("robust"),
        around={"logger": WandbLogger(offline=True, save_dir=tmp_path)},
    )
    list(check_batches(many))
    drawn = 60 + 60 * (5 + 7)  # of each class; of each tree the rules that count and all features
    assert f"{drawn} pictures" in only(check_loggers(many), "warning").message


def test_loggers__a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    made = case(tmp_path, around={"logger": CSVLogger(tmp_path / "file")})
    assert "cannot be written" in only(check_loggers(made), "problem").message


# -- encoders ------------------------------------------------------------------------------------------------


class Moody(ColourEncoder):
    """Never gives the same twice, as dropout in train mode does."""

    def encode_images(self, images):
        return super().encode_images(images) + torch.randn(len(images), self.dim)


class Social(ColourEncoder):
    """Looks at the whole batch, as batch statistics in train mode do."""

    def encode_images(self, images):
        rows = super().encode_images(images)
        return rows - rows.mean(0)


class Broken(ColourEncoder):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def encode_images(self, images):
        return torch.full((len(images), self.dim), self.value)


class Narrow(ColourEncoder):
    def encode_images(self, images):
        return super().encode_images(images)[:, :5]


class Long(ColourEncoder):
    def encode_texts(self, texts):
        return torch.ones(len(texts), self.dim)


@pytest.mark.parametrize(
    ("encoder", "told_of"),
    [
        (Moody(), "the second time"),
        (Social(), "alone"),
        (Broken(float("nan")), "not finite"),
        (Broken(1.0), "the same embedding"),
        (Narrow(), "(8, 12)"),
        (Long(), "unit vectors"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_encoder__that_cannot_be_trusted(encoder, told_of):
    assert told_of in only(examine_encoder(encoder), "problem").message


def test_encoder__in_order():
    assert only(examine_encoder(ColourEncoder()), "ok").facts["dim"] == 12


def test_encoder__that_is_not_there_tells_what_is(tmp_path):
    found = list(check_encoder(case(tmp_path, encoder="embedded:digit")))
    assert "embedded:digits" in only(found, "problem").message


@pytest.mark.slow
def test_encoder__the_default_may_be_missing(tmp_path):
    options = {name: value for name, value in options_of(callback()).items() if name != "encoder"}
    made = case(tmp_path)
    made.modes = FailureModes(**group_options(options))
    assert "no failure directions" in only(check_encoder(made), "warning").message


def test_robust_encoder__features_must_be_means_of_maps(tmp_path):
    class Crooked(ColourEncoder):
        def encode_images(self, images):
            return 1 - super().encode_images(images)

    crooked = list(check_robust_encoder(case(tmp_path, robust_encoder=Crooked())))
    assert "not the means" in only(crooked, "problem").message
    assert set(statuses(check_robust_encoder(case(tmp_path, robust_encoder=ColourEncoder())))) == {"ok"}
    assert statuses(check_robust_encoder(case(tmp_path))) == ["skipped"]


# -- images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_matching_normalization__finds_each(name):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 3, 16, 16), generator=generator) / 255
    assert matching_normalization(T.Normalize(*map(list, NORMALIZATIONS[name]))(pixels)) == name
    assert matching_normalization(torch.rand(8, 3, 16, 16, generator=generator) * 3 - 1) is None


def test_images__normalisation_that_nobody_told_of_is_named(tmp_path):
    mean, std = NORMALIZATIONS["ImageNet's"]
    hidden = Images()
    hidden.images = (hidden.images * 255).round() / 255
    hidden.transform = lambda image: T.Normalize(mean, std)(image)  # nothing to read off
    made = read(tmp_path, DataLoader(hidden, batch_size=16))
    found = only(check_images(made), "problem")
    assert "instead of 0 to 1" in found.message
    assert "ImageNet's: normalization=([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])" in found.remedy
    told_it = read(tmp_path, DataLoader(hidden, batch_size=16), normalization=(mean, std))
    assert "8-bit" in only(check_images(told_it), "ok").message


def test_images__a_wrong_normalisation_that_stays_within_0_and_1(tmp_path):
    images = Images()
    images.images = (images.images * 255).round() / 255
    almost = read(tmp_path, DataLoader(images, batch_size=16), normalization=([0.5], [0.2]))
    assert "dataset's transforms fits" in only(check_images(almost), "warning").remedy
    blurred = Images()  # no steps to tell by
    resized = read(tmp_path, DataLoader(blurred, batch_size=16), normalization=([0.5], [0.2]))
    assert statuses(check_images(resized)) == ["ok"]  # it cannot be known
    narrow = read(tmp_path, DataLoader(blurred, batch_size=16), normalization=([0.5], [0.05]))
    assert "only from" in only(check_images(narrow), "warning").message


def test_images__random_transforms_of_validation_are_told(tmp_path):
    noisy = Images()
    noisy.transform = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])
    found = only(check_images(read(tmp_path, DataLoader(noisy, batch_size=16))), "warning")
    assert "random transforms" in found.message


@settings(deadline=None, max_examples=15)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([(32, 32), (24, 40)]), st.sampled_from([0.875, 1.0]))
def test_in_words__what_is_cut_off_is_what_the_encoder_does_not_see(height, width, size, crop):
    preprocessing = Preprocessing(size=size, crop=crop, interpolation="bilinear")
    _, lost = in_words(preprocessing, height, width)
    ramp = torch.stack(
        [
            torch.linspace(0, 1, width).expand(height, width),
            torch.linspace(0, 1, height)[:, None].expand(height, width),
            torch.zeros(height, width),
        ]
    )
    seen = preprocessing.view(ramp[None])[0, :2].flatten(1)
    low, high = seen.aminmax(dim=1)
    assert abs(float((high - low).prod()) - (1 - lost)) < 0.12


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_in_words__modes_that_cut_nothing(mode):
    assert in_words(Preprocessing(size=(32, 32), resize_mode=mode), 40, 80)[1] == 0.0


# -- batches, ids, processes ---------------------------------------------------------------------------------


def test_batches__are_read_as_the_callback_reads_them(tmp_path):
    found = only(check_batches(case(tmp_path)), "ok")
    assert "(16, 3, 8, 8) float32" in found.message
    assert "4 classes (dataset.classes)" in found.message


def test_batches__labels_out_of_range_are_found_wherever_they_are(tmp_path):
    images = Images()
    images.labels[[3, 150]] = 9
    seen = list(check_batches(case(tmp_path, DataLoader(images, batch_size=16), model=Silent())))
    assert "Labels run from 0 to 9" in only(seen, "problem").message
    images.labels[3] = -100
    late = list(check_batches(case(tmp_path, DataLoader(images, batch_size=16), model=Silent())))
    assert "1 of 160 labels are not in 0 ... 3: example 150 has 9" in only(late, "problem").message
    assert [one.message for one in late if "left out" in one.message] == [
        "1 of 160 examples have no label (-100) and are left out"
    ]


def test_batches__small_classes_are_counted(tmp_path):
    found = list(check_batches(case(tmp_path, loader(60))))
    assert "4 of 4 classes have fewer than 20" in only(found, "warning").message


def test_batches__names_that_do_not_fit(tmp_path):
    found = list(check_batches(case(tmp_path, class_names=["a", "b"])))
    assert "has 2 names" in only(found, "problem").message


def test_batches__a_step_that_fails_is_a_problem_like_any_other(tmp_path):
    class Failing(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            raise KeyError("pixels")

    found = list(told("batches", check_batches, case(tmp_path, model=Failing())))
    assert "KeyError" in only(found, "problem").message


def test_examples__of_an_iterable_dataset_have_no_ids(tmp_path):
    class Stream(IterableDataset):
        classes = Images().classes

        def __iter__(self):
            images = Images()
            yield from (images[i] for i in range(len(images)))

    made = read(tmp_path, DataLoader(Stream(), batch_size=16))
    assert "read_batch" in only(check_examples(made), "problem").message
    assert "normalization" in only(check_images(made), "problem").message  # the stream tells of no transform


def test_examples__ids_that_come_twice(tmp_path):
    def same_ids(outputs, batch):
        return BatchRecord(ids=torch.arange(len(batch[1])))

    made = read(tmp_path, read_batch=same_ids, groups_from=None)
    assert "only 16 ids" in only(check_examples(made), "problem").message


def test_several_loaders__are_told_apart(tmp_path):
    images = Images()
    images.labels[0] = 7

    found = list(check_batches(case(tmp_path, loader(), DataLoader(images, batch_size=16), model=Silent())))
    assert only(found, "problem").message.startswith("loader 1: Labels run from 0 to 7")
    assert only(found, "ok").message.startswith("loader 0:")


@settings(max_examples=40)
@given(st.integers(0, 200), st.integers(1, 9))
def test_graded_once__whatever_the_sampler_repeats(size, processes):
    assert graded_once(size, processes)


def test_graded_once__would_see_what_counts_twice(monkeypatch):
    class Credulous(GradesMetric):
        def compute(self):
            return self._rows()

    monkeypatch.setattr(data, "GradesMetric", Credulous)
    assert not graded_once(10, 4)


def test_processes__say_what_is_repeated(tmp_path):
    made = read(tmp_path, loader(150), around={"devices": 4, "strategy": "ddp"})
    found = only(check_processes(made), "ok")
    assert "4 processes (1 node(s)): of 150 examples the sampler repeats 2" in found.message
    assert only(check_processes(read(tmp_path, loader(150))), "ok").facts["world_size"] == 1


# -- interventions -------------------------------------------------------------------------------------------


def test_interventions__work_or_say_why_not(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    acting = {"interventions": [Upweight()]}
    assert statuses(check_interventions(read(tmp_path))) == ["skipped"]
    assert statuses(check_interventions(read(tmp_path, **acting))) == ["ok"]
    stream = read(tmp_path, train=DataLoader(Stream(), batch_size=4), **acting)
    assert "iterable" in only(told("interventions", check_interventions, stream), "problem").message
    flipped = Images()
    flipped.transform = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])
    random_view = read(tmp_path, train=DataLoader(flipped, batch_size=4), **acting)
    assert "train_analysis_dataset" in only(check_interventions(random_view), "warning").remedy


# -- places and costs ----------------------------------------------------------------------------------------


def test_cache__unwritable_known_and_damaged(tmp_path):
    (tmp_path / "file").write_text("")
    broken = read(tmp_path, cache_folder=tmp_path / "file" / "cache")
    assert "cannot be written" in only(check_cache(broken), "warning").message

    made = read(tmp_path, cache_folder=tmp_path / "cache")
    assert "of the first batch 0% are there" in only(check_cache(made), "ok").message
    assert not (tmp_path / "cache").exists()
    trainer(tmp_path, callback(cache_folder=tmp_path / "cache")).validate(OracleClassifier(), loader(), verbose=False)
    assert "of the first batch 100% are there" in only(check_cache(made), "ok").message
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "of the first batch 0% are there; damaged files" in only(check_cache(made), "ok").message


def test_costs__budgets_that_are_too_small(tmp_path):
    made = read(tmp_path)
    assert statuses(check_time(made)) == ["ok", "ok"]
    made.modes.time_budget = 1e-4
    made.modes.memory_budget = 100
    assert "time_budget=0.0001 is less" in only(check_time(made), "warning").message
    assert "memory_budget=100 is less" in only(check_memory(made), "warning").message
    made.modes.time_budget = "10%"
    assert "time_budget=10% is enough for these if an epoch takes" in next(iter(check_time(made))).message


def test_rehearsal__goes_all_the_way_and_waits_for_problems_to_be_solved(tmp_path):
    made = read(tmp_path)
    assert only(check_rehearsal(made), "ok").facts == {"examples": 32}
    made.problems.add("batches")
    assert statuses(check_rehearsal(made)) == ["skipped"]


def random_states():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpys, random.getstate()


def test_captions__of_names_that_are_no_words(tmp_path):
    assert "from general, against 'a photo of a class 0'" in only(check_captions(read(tmp_path)), "ok").message
    nameless = read(tmp_path, class_names=["n01440764", "tench", "7", "cock"])
    assert "2 of 4 class names are no words, like 'n01440764'" in only(check_captions(nameless), "warning").message
    assert statuses(check_captions(read(tmp_path, captions=None))) == ["skipped"]


# -- the whole -----------------------------------------------------------------------------------------------


def test_examine__leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, images = OracleClassifier(), loader(shuffle=True)
    made = trainer(tmp_path, callback(), logger=CSVLogger(tmp_path / "logs"))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = random_states()
    sampler = images.batch_sampler
    found = list(examine(made, model, Data(images)))
    assert "problem" not in statuses(found)
    assert random_states() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert images.batch_sampler is sampler
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_examine__every_check_says_something_even_where_all_goes_wrong(tmp_path):
    class Nothing(L.LightningModule):
        pass

    made = trainer(tmp_path, callback(encoder="no/such", robust_encoder="nowhere.pt", cache_folder="/dev/null/x"))
    found = list(examine(made, Nothing()))
    assert {one.check for one in found} == set(CHECKS)
    assert {"encoder", "robust encoder", "batches"} <= {one.check for one in found if one.status == "problem"}


@pytest.mark.parametrize("fault", ["labels", "normalisation", "step", "stage"])
def test_examine__what_is_broken_is_told_once(tmp_path, fault):
    images, model = Images(), Silent()
    if fault == "labels":
        images.labels[2] = 9
    elif fault == "normalisation":
        images.transform = lambda image: 5 * image
    elif fault == "step":
        model.validation_step = None
    data = Data(DataLoader(images, batch_size=16))
    if fault == "stage":  # a data module that only knows how to fit is none
        data.setup = lambda stage: setattr(data, "loaders", data.loaders if stage == "fit" or data.ready else [])
        data.ready = True
    found = list(examine(trainer(tmp_path, callback()), model, data))
    assert [one.check for one in found if one.status == "problem"] == {
        "labels": ["batches"],
        "normalisation": ["images"],
        "step": ["batches"],
        "stage": [],
    }[fault]


def test_examine__needs_the_callback(tmp_path):
    assert only(examine(trainer(tmp_path), OracleClassifier()), "problem").check == "callback"


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    small = ["--data.init_args.train_size=200", "--data.init_args.val_size=400"]

    def run(*arguments: str, encoder: str = "embedded:digits") -> int:
        config = tmp_path / "config.yaml"
        config.write_text(DIGITS.read_text().replace(" encoder: embedded:digits", f" encoder: {encoder}"))
        return main(["doctor", "--config", str(config), *small, *arguments])

    return run


@pytest.mark.slow
def test_doctor__of_the_packaged_config(command, capsys, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert command() == 0
    shown = capsys.readouterr().out
    assert all(f" {check} " in shown for check in CHECKS)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "Ready. " in shown
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]

    assert command("--json=true", encoder="embedded:digts") == 1
    told_all = json.loads(capsys.readouterr().out)
    assert not told_all["ready"]
    assert told_all["findings"][1] | {"facts": {}, "remedy": ""} == {
        "check": "encoder",
        "status": "problem",
        "message": told_all["findings"][1]["message"],
        "remedy": "",
        "facts": {},
    }
    assert "Did you mean embedded:digits" in told_all["findings"][1]["message"]


@pytest.mark.slow
def test_doctor__as_a_person_would_run_it(tmp_path):
    arguments = ["--config", str(DIGITS), "--trainer.accelerator=cuda", "--trainer.devices=64"]
    done = subprocess.run(
        [sys.executable, "-c", "from lightning_failures.cli.main import main; exit(main())", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "--trainer.accelerator=cpu" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def clip():
    from lightning_failures.encoders import load_encoder

    return load_encoder("embedded:digits")


@pytest.mark.slow
def test_known_pictures__the_packaged_clip_knows_them(clip):
    assert zero_shot_accuracy(clip, coloured_digits()) > 0.9
    assert zero_shot_accuracy(clip, plain_shapes()) > 0.7


class Swapped:
    """Blue for red."""

    def __init__(self, encoder: OpenCLIPEncoder) -> None:
        self.encode_texts, self._inner = encoder.encode_texts, encoder

    def encode_images(self, images):
        return self._inner.encode_images(images.flip(1))


@pytest.mark.slow
def test_known_pictures__swapped_channels_fail(clip):
    assert all(zero_shot_accuracy(Swapped(clip), known) < known.needed for known in (coloured_digits(), plain_shapes()))


@pytest.mark.slow
def test_doctor__an_untrained_clip_is_not_ready(command, clip, capsys, tmp_path):
    from lightning_failures.bundled.models import CLIP_FOLDER

    twin = tmp_path / "twin"
    shutil.copytree(CLIP_FOLDER, twin)
    state = safetensors.torch.load_file(twin / "open_clip_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: 0.05 * torch.randn(value.shape, generator=generator).to(value.dtype) if value.ndim > 1 else value
        for name, value in state.items()
    }
    safetensors.torch.save_file(noise, twin / "open_clip_model.safetensors")
    assert command("--trainer.devices=3", "--trainer.strategy=ddp", encoder=f"local-dir:{twin}") == 1
    shown = capsys.readouterr().out
    assert "3 processes (1 node(s)): of 400 examples the sampler repeats 2" in " ".join(shown.split())
    assert "70% of one of the first two is needed" in " ".join(shown.split())
    assert "Not ready, with 1 problem: known pictures." in shown
    assert "not before the problems above are solved" in " ".join(shown.split())


class Stopwatch(L.Callback):
    """Seconds of a validation, from before the callbacks that come after it to the end of all."""

    def on_validation_start(self, trainer, pl_module):
        self.begin = time.perf_counter()

    def on_validation_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.begin


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_time__is_that_of_a_real_validation_within_a_factor_of_3(tmp_path):
    digits = ColouredDigitsDataModule(train_size=600, val_size=600)
    model, options = DigitClassifier(), {"encoder": "embedded:digits", "robust_encoder": "embedded:digits"}
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, datamodule=digits)

    def modes(cache: str) -> FailureModes:
        return callback(**options, captions="digits", permutations=999, pictures=False, cache_folder=tmp_path / cache)

    def measured(cache: str) -> tuple[float, float]:
        """Seconds of a validation, and of its analysis."""
        watch, looking = Stopwatch(), modes(cache)
        trainer(tmp_path, watch, looking).validate(model, datamodule=digits, verbose=False)
        return watch.seconds, looking.last_report.timings["total"]

    def expected(folder: str) -> Cost:
        (tmp_path / folder).mkdir()
        looked_at = CheckContext(
            trainer(tmp_path, modes("no cache")), model, digits, modes("no cache"), tmp_path / folder
        )
        for check in (check_encoder, check_robust_encoder, check_batches):
            assert "problem" not in statuses(check(looked_at))
        return estimate(looked_at)

    costs = [expected("a"), expected("b")]  # the better of two, for the sake of busy machines
    cold = min(measured("one"), measured("two"))
    warm = min(measured("one"), measured("two"))
    later = warm[1]
    first = cold[0] - warm[0] + later
    assert 1 / 3 < min(cost.first for cost in costs) / first < 3
    assert 1 / 3 < min(cost.later for cost in costs) / later < 3
    assert costs[0].examples == 600
