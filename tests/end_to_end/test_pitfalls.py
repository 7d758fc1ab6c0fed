"""What has broken plug-ins like this one, in a real Trainer; docs/reliability.md lists the test of each pitfall."""

from __future__ import annotations

import ast
import functools
import gc
import re
import weakref
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, RichProgressBar, StochasticWeightAveraging, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from packaging.requirements import Requirement
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.utils.data import DataLoader

from lightning_failures import FailureModes
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.steering import training_view as training
from tests.helpers.toy import Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer
from tests.writers.offline import transactions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_failures"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]


class Seen(Callback):
    """Records keys and values after each validation, and the state of the process."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})


# -- 5: no_grad in fit, inference_mode in validate ------------------------------------------------------------


@pytest.mark.slow
def test_inference_mode__both_doors_give_the_same_report_and_pictures(tmp_path):
    found = {}
    for door in ("fit", "validate"):
        failures = callback(
            pictures=True, robust_encoder=ColourEncoder("robust"), pictures_every_n=1
        )  # pictures are made within the validation
        run = trainer(tmp_path / door, failures, num_sanity_val_steps=0)
        grads = []

        class Door(OracleClassifier):
            def validation_step(self, batch, batch_idx, grads=grads):
                grads.append(torch.is_inference_mode_enabled())
                return super().validation_step(batch, batch_idx)

        if door == "fit":
            run.fit(Door(), loader(), loader(200))
        else:
            run.validate(Door(), loader(200), verbose=False)
        assert set(grads) == {door == "validate"}
        files = sorted((tmp_path / door).rglob("*.png"))
        found[door] = failures.last_report, {path.name: path.read_bytes() for path in files}
    classes = [
        # null scores are computed for as many classes as the time budget allows
        [{k: v for k, v in entry.items() if not k.startswith("cv_null")} for entry in report.to_dict()["classes"]]
        for report, _ in found.values()
    ]
    assert classes[0] == classes[1]
    assert found["fit"][0].to_dict()["groups"] == found["validate"][0].to_dict()["groups"]
    assert found["fit"][1] == found["validate"][1] != {}


# -- 6: callback hooks run before the module's own ------------------------------------------------------------


def test_order_of_hooks__keys_are_there_for_the_module_and_for_callbacks_of_any_order(tmp_path):
    seen = {}

    class Reads(OracleClassifier):
        def on_validation_epoch_end(self):
            seen["module"] = "failures/cv_score_mean" in self.trainer.callback_metrics

    class After(Callback):
        def __init__(self, name):
            self.name = name

        def on_validation_end(self, trainer, pl_module):
            seen[self.name] = "failures/cv_score_mean" in trainer.callback_metrics

    trainer(tmp_path, After("before"), callback(), After("after")).validate(Reads(), loader(), verbose=False)
    assert seen == {"module": True, "before": True, "after": True}


# -- 13: what is not defined is not logged as 0 ---------------------------------------------------------------


class Flawless(OracleClassifier):
    def forward(self, x):
        labels = ((x[:, 0, 0, 0] * 0.25 + 0.5) * 10).round().long()
        return self.net(x) * 0 + 4.0 * nn.functional.one_hot(labels, 4).float()


def events_of(logger):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, {"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_undefined__nothing_fails_and_no_score_is_in_the_event_files(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"))
    trainer(tmp_path, failures, logger=logger).fit(Flawless(), loader(), loader())
    events = events_of(logger)
    names = {name for name in events.Tags()["scalars"] if name.startswith("failures/")}
    assert events.Scalars("failures/accuracy")[0].value == 1
    assert not {name for name in names if "cv_score" in name or "p_value" in name or "aler" in name}
    assert all(entry.skipped and entry.cv_score is None for entry in failures.last_report.classes)


# -- 18: two packages with classes of the same names ----------------------------------------------------------


def test_namespaces__the_mathematics_knows_no_lightning():
    may = {"trainer", "steering", "pools", "callback", "pytorch_lightning", "cli", "bundled", "doctor", "recipes"}
    knows = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            knowing = any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in names)
            if knowing and path != PACKAGE / "core" / "rng.py":  # restores the random streams as Lightning does
                knows.add(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    assert {"trainer", "callback"} <= knows <= may


# -- 19: malicious releases -----------------------------------------------------------------------------------


def test_requirements__exclude_the_malicious_releases_of_either_package():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    ranges = {one.name: one.specifier for one in map(Requirement, lines)}
    for package in ("lightning", "pytorch_lightning"):
        assert not list(ranges[package].filter(["2.6.2", "2.6.3"]))
        assert list(ranges[package].filter(["2.4.0", "2.6.1", "2.6.4"])) == ["2.4.0", "2.6.1", "2.6.4"]


# -- 20-23: loggers -------------------------------------------------------------------------------------------


class Elsewhere(Logger):
    """A logger without a writer of the package; it takes scalars as any logger does."""

    name, version = "elsewhere", "0"

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def log_metrics(self, metrics, step=None):
        self.keys |= set(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_logger__an_unknown_one_costs_one_warning_and_the_files_are_there(tmp_path):
    logger = Elsewhere()
    failures = callback(pictures=False)
    with pytest.warns(UserWarning, match="has no writer for Elsewhere") as caught:
        trainer(tmp_path, failures, logger=logger, max_epochs=3).fit(OracleClassifier(), loader(), loader())
    assert sum("Elsewhere" in str(one.message) for one in caught) == 1
    assert "failures/cv_score_mean" in logger.keys
    assert len(list(tmp_path.rglob("epoch=*/report.json"))) == 3


@pytest.mark.slow
def test_tensorboard__few_tags_each_with_the_same_meaning_at_every_step(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"), worst_k=2, pictures_every_n=5)
    # pictures are made at the fifth analysis and the last
    trainer(tmp_path, failures, logger=logger, max_epochs=6).fit(OracleClassifier(), loader(), loader())
    events = events_of(logger)
    images = {tag: [one.step for one in events.Images(tag)] for tag in events.Tags()["images"]}
    assert images
    assert all(tag.startswith(("failures/classes/", "failures/rules/", "failures/findings")) for tag in images)
    assert all(set(steps) <= {50, 60} and len(steps) == len(set(steps)) for steps in images.values())
    assert not any(re.search(r"epoch|step|\d{2}", tag) for tag in images)
    per_class = {tag for tag in events.Tags()["scalars"] if tag.startswith("failures/class/")}
    assert all(len(events.Scalars(tag)) <= 6 for tag in per_class)
    assert [one.step for one in events.Scalars("failures/cv_score_mean")] == [9, 19, 29, 39, 49, 59]


@pytest.mark.slow
def test_wandb__no_point_of_an_offline_run_is_lost(tmp_path):
    """W&B counts its own steps; the writer passes none, and the axis is trainer/global_step."""
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings=wandb.Settings(silent=True, disable_git=True))
    failures = callback(pictures=False)
    try:
        run = trainer(tmp_path, failures, logger=logger, max_epochs=3, log_every_n_steps=1)
        run.fit(OracleClassifier(), loader(), loader())
    finally:
        wandb.finish()
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in one.history.item}
        for one in transactions(tmp_path)
        if one.WhichOneof("record_type") == "history"
    ]
    tables = [row for row in rows if any(key.startswith("failures/table") for key in row)]
    scalars = [row for row in rows if "failures/cv_score_mean" in row]
    assert [int(row["trainer/global_step"]) for row in tables] == [10, 20, 30]
    assert [int(row["trainer/global_step"]) for row in scalars] == [9, 19, 29]
    steps = [int(row["_step"]) for row in rows]
    assert steps == sorted(set(steps))


def test_scalars__of_many_classes_are_those_of_the_worst(tmp_path):
    images, seen = Images(320, classes=40), Seen()
    images.images.clamp_(0, 1)
    data = DataLoader(images, batch_size=32)
    trainer(tmp_path, callback(worst_k=3, pictures=False), seen).validate(Classifier(40), data, verbose=False)
    (metrics,) = seen.metrics
    classes = {key.split("/")[2] for key in metrics if key.startswith("failures/class/")}
    assert len(classes) == 3
    assert sum(key.startswith("failures/") for key in metrics) < 30


# -- 24: threads ----------------------------------------------------------------------------------------------


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_threads__one_in_the_fits_and_afterwards_as_many_as_before(tmp_path, monkeypatch):
    from lightning_failures.directions import fit as directions

    during = []
    standardize = directions.standardize

    def spy(*args, **kwargs):
        during.append(blas_threads())
        return standardize(*args, **kwargs)

    monkeypatch.setattr(directions, "standardize", spy)
    torch.set_num_threads(2)
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"))
    with threadpool_limits(2):
        before = blas_threads(), torch.get_num_threads()
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(), verbose=False)
        after = blas_threads(), torch.get_num_threads()
    assert before == after
    assert before[0].count(2) > 0, "no library to limit"
    assert before[1] == 2
    assert during
    assert all(set(threads) == {1} for threads in during)


# -- 27: autocast and half precision --------------------------------------------------------------------------


class Recording:
    """The packaged CLIP; records its embeddings."""

    def __init__(self) -> None:
        self.inner = load_encoder("embedded:digits", device="cpu")
        self.name, self.fingerprint, self.dim = "recording", self.inner.fingerprint, self.inner.dim
        self.given: list[torch.Tensor] = []

    def encode_images(self, images):
        self.given.append(self.inner.encode_images(images))
        return self.given[-1]


@pytest.mark.slow
def test_precision__of_the_training_is_not_that_of_the_encoder(tmp_path):
    given = {}
    for precision in ("32-true", "autocast", "bf16-mixed", "bf16-true"):
        encoder, module = Recording(), Classifier()
        names = set(module.state_dict()), {name for name, _ in module.named_modules()}
        failures = callback(encoder=encoder, cache_folder=tmp_path / precision, pictures=False)
        run = trainer(tmp_path, failures, precision="32-true" if precision == "autocast" else precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):  # around the user's whole script
            run.validate(module, loader(64), verbose=False)
        given[precision] = torch.cat(encoder.given)
        assert given[precision].dtype == torch.float32
        assert (set(module.state_dict()), {name for name, _ in module.named_modules()}) == names
    assert torch.equal(given["bf16-mixed"], given["32-true"])
    assert torch.equal(given["autocast"], given["32-true"])
    # with "bf16-true" Lightning rounds the images to 8 bits; the encoder still computes in 32
    exact = encoder.inner.encode_images(rounded(loader(64)))
    torch.testing.assert_close(given["bf16-true"], exact, atol=1e-5, rtol=0)
    assert (given["bf16-true"] * given["32-true"]).sum(1).min() > 0.95


def rounded(data) -> torch.Tensor:
    """Return the images in [0, 1] after a conversion to bfloat16 and back."""
    images = torch.cat([x for x, _ in data]).bfloat16().float()
    return (images * 0.25 + 0.5).clamp(0, 1)


# -- 28: torch.compile, weight averaging ----------------------------------------------------------------------


class CompiledNet(Classifier):
    """A model with a compiled net: no Python code calls its part ``net.1`` any more."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "net"])
def test_compile__logits_are_found(tmp_path, kind):
    torch.manual_seed(0)
    plain = Classifier()
    module = CompiledNet() if kind == "net" else torch.compile(Classifier(), backend="eager")
    target = module.net._orig_mod if kind == "net" else module._orig_mod.net
    target.load_state_dict(plain.net.state_dict())
    reports = []
    for one in (plain, module):
        failures = callback(pictures=False)
        trainer(tmp_path, failures).validate(one, loader(), verbose=False)
        reports.append([entry.to_dict() for entry in failures.last_report.classes])
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_compile__a_submodule_that_was_compiled_away_is_told(tmp_path):
    failures = callback(logits_from="net._orig_mod.1", pictures=False)
    module = CompiledNet()
    with torch.inference_mode():
        module(torch.zeros(16, 3, 8, 8))  # compile before the hooks are attached
    with pytest.raises(ConfigurationError, match=r"logits_from='net\._orig_mod\.1'.*torch\.compile"):
        trainer(tmp_path, failures).validate(module, loader(), verbose=False)


class Drifting(OracleClassifier):
    """A model whose accuracy depends on its single weight, which grows by 1 in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.used: list[float] = []

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        x, y = batch
        right = torch.arange(16) / 16 < self.weight / 40
        logits = self(x) * 0 + nn.functional.one_hot((y + ~right) % 4, 4)
        self.log("own_accuracy", right.float().mean())
        self.used.append(float(self.weight))
        return {"logits": logits}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def averaging(kind):
    if kind == "SWA":
        return StochasticWeightAveraging(swa_lrs=1.0, swa_epoch_start=1, annealing_epochs=1)
    if not hasattr(lightning_callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    return lightning_callbacks.EMAWeightAveraging(decay=0.9)


@pytest.mark.parametrize(("kind", "ours_first"), [("EMA", True), ("EMA", False), ("SWA", True)])
def test_weight_averaging__grades_are_of_the_weights_that_validation_used(tmp_path, kind, ours_first):
    seen, failures, module = Seen(), callback(encoder=None, pictures=False), Drifting()
    both = [failures, averaging(kind)] if ours_first else [averaging(kind), failures]
    run = trainer(tmp_path, *both, seen, max_epochs=3, num_sanity_val_steps=0, gradient_clip_val=None)
    run.fit(module, loader(), loader())
    for metrics in seen.metrics:
        assert metrics["failures/accuracy"] == pytest.approx(metrics["own_accuracy"])
    assert len({metrics["failures/accuracy"] for metrics in seen.metrics}) == 3
    if kind == "EMA":
        assert module.used[-1] < 25  # averaged weights; the last weight itself is 30
        assert failures.last_report.accuracy < 25 / 40


# -- 29: nothing is kept --------------------------------------------------------------------------------------


class Leaves(OracleClassifier):
    """A model that keeps weak references to the inputs and outputs of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref] = []

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.made += [weakref.ref(tensor) for tensor in (*batch, logits)]
        return {"logits": logits, "all": batch}


@pytest.mark.slow
def test_memory__no_batch_and_no_output_outlives_its_validation(tmp_path):
    module = Leaves()
    alive: list[int] = []

    class Count(Callback):
        def on_train_epoch_start(self, *args):
            gc.collect()
            alive.append(sum(ref() is not None for ref in module.made))

    failures = callback(robust_encoder=ColourEncoder("robust"), interventions=[Upweight()])
    trainer(tmp_path, failures, Count(), max_epochs=3, num_sanity_val_steps=0).fit(module, loader(), loader())
    assert len(module.made) == 3 * 3 * 10
    assert alive == [0, 0, 0]


def test_memory__a_callback_that_is_kept_keeps_no_trainer_and_no_data(tmp_path):
    failures = callback(interventions=[Upweight()], pictures=False)
    train, val, module = loader(), loader(), OracleClassifier()
    run = trainer(tmp_path, failures)
    run.fit(module, train, val)
    left = [weakref.ref(one) for one in (run, module, train.dataset, val.dataset, train, val)]
    run.callbacks.clear()
    del failures.log, failures.log_dict  # Lightning binds these to the module, in any callback
    del run, module, train, val
    gc.collect()
    assert [type(ref()).__name__ for ref in left if ref() is not None] == []
    assert failures.last_report is not None


class NeverTheSame(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.lerp(image.flip(2), 0.01 * float(torch.rand(()))), label


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="looks at what is mapped")
def test_disk__images_that_always_change_take_no_more_than_the_limit(tmp_path, monkeypatch):
    """A shard that is evicted but still mapped keeps its disk space."""
    from lightning_failures.trainer import open_encoders as module

    folder, held = tmp_path / "cache", []

    class Count(Callback):
        def on_train_epoch_start(self, *args):
            held.append(Path("/proc/self/maps").read_text().count(str(folder)))

    monkeypatch.setattr(module, "EmbeddingCache", functools.partial(EmbeddingCache, max_bytes=16_000))
    failures = callback(cache_folder=folder, pictures=False)
    data = DataLoader(NeverTheSame(), batch_size=16)  # 160 rows of 24 bytes, and an index, for each validation
    trainer(tmp_path, failures, Count(), max_epochs=9, num_sanity_val_steps=0).fit(OracleClassifier(), loader(16), data)
    assert failures.last_report.directions is not None
    assert max(held) <= 4
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 16_000


def test_pictures__are_drawn_without_pyplot():
    assert not [path for path in PACKAGE.rglob("*.py") if "matplotlib" in path.read_text()]


# -- 30: a step may return anything ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned",
    [
        "a text",
        [1, 2],
        {"loss": 1.0},
        (torch.zeros(16, 7), "x"),
        torch.tensor(3.0),
        {"logits": None},
        object(),
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_step__may_return_anything(tmp_path, returned):
    class Returns(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])
            return returned

    expected, failures = callback(pictures=False), callback(pictures=False)
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(48), verbose=False)
    trainer(tmp_path, failures).validate(Returns(), loader(48), verbose=False)
    assert failures.last_report.to_dict()["classes"] == expected.last_report.to_dict()["classes"]


class PartlyLabelled(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, -100 if index % 5 == 0 else label


def test_labels__ignore_index_is_left_out(tmp_path):
    class Guesses(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    failures = callback(pictures=False)
    trainer(tmp_path, failures).validate(Guesses(), DataLoader(PartlyLabelled(400), batch_size=16), verbose=False)
    assert failures.last_report.examples == 320
    assert failures.last_report.coverage == 1  # all examples were graded
    assert all(entry.cv_score > 0.8 for entry in failures.last_report.classes)


# -- 31: nothing acts unasked ---------------------------------------------------------------------------------


def test_entry_points__none_reaches_every_trainer():
    """Lightning calls whatever is registered as ``callbacks_factory``, in every Trainer."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project) & {"entry-points", "gui-scripts"} == set()
    assert not any(isinstance(one, FailureModes) for one in L.Trainer(logger=False, accelerator="cpu").callbacks)


# -- 32: one bar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bar", "patience"), [(TQDMProgressBar, 0.0), (RichProgressBar, 0.0), (RichProgressBar, 10.0)])
def test_bar__our_own_comes_only_where_embedding_takes_long(tmp_path, capfd, monkeypatch, bar, patience):
    monkeypatch.setattr(training, "PROGRESS_DELAY", patience)
    failures = callback(interventions=[Upweight()], pictures=False)
    run = trainer(tmp_path, failures, bar(), max_epochs=2, enable_progress_bar=True)
    run.fit(OracleClassifier(), loader(64, shuffle=True), loader(400))
    out, err = capfd.readouterr()
    assert ("FailureModes embeds" in out + err) == (patience == 0)
    assert "FailureModes" not in out
