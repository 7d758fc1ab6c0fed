"""Files that the version before wrote are read with the same values; see ``tests/compatibility/make.py``."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from lightning_failures import FailureModes
from lightning_failures.bundled import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.captions import CaptionVocabulary
from lightning_failures.cli import main
from lightning_failures.cli.lightning_commands import FailureCLI, FailureTrainer
from lightning_failures.data.report import FailureReport
from lightning_failures.directions import FailureDirections
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, embed
from lightning_failures.interventions import Upweight
from lightning_failures.pools import PoolManifest, merge_shards
from lightning_failures.report import compare, open_run
from lightning_failures.report.diary_storage import load_diary
from tests.compatibility.make import (
    EPOCHS,
    FEATURE_NAME,
    POOL,
    THUMBNAILS,
    Classifier,
    ColourEncoder,
    Data,
    describe,
    digits,
    lottery_task,
    new_callback,
    trainer,
)

FILES = Path(__file__).parent / "compatibility"
EXPECTED = json.loads((FILES / "expected.json").read_text())

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty"),
    # old spellings of options, as the files have them
    pytest.mark.filterwarnings(r"ignore:FailureModes\(.* has moved:DeprecationWarning"),
    # Lightning of another version than the one that wrote the checkpoints
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),
]


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Return a copy of all files, whose cache is the one in use."""
    folder = shutil.copytree(FILES, tmp_path / "files", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE", str(folder / "cache"))
    return folder


# -- run folders -----------------------------------------------------------------------------------------------------


def test_run__report_history_and_pictures():
    run = open_run(FILES / "run")
    assert run.notes == ()
    assert [[report.epoch, report.global_step, report.accuracy] for report in run.history] == EXPECTED["history"]
    assert [mode.name for mode in run.report.modes] == EXPECTED["modes"]
    assert {str(feature.feature): feature.name for feature in run.report.features} == EXPECTED["feature_names"]
    assert [[picture.tag, picture.caption] for picture in run.gallery.pictures] == EXPECTED["pictures"]
    assert len(run.gallery.thumbnails.ids) == THUMBNAILS


@pytest.mark.parametrize("name", ["run", "later"])
def test_report__is_written_with_the_same_values(name):
    saved = json.loads((FILES / name / "failures" / "report.json").read_text())
    written = json.loads(FailureReport.from_dict(saved).to_json())
    assert of_before(written, saved) == saved


def of_before(written, saved):
    """Return what is written under the keys of before, at every level: later versions add keys."""
    if isinstance(saved, dict):
        return {key: of_before(written[key], value) for key, value in saved.items()}
    if isinstance(saved, list) and len(written) == len(saved):
        return [of_before(one, value) for one, value in zip(written, saved, strict=True)]
    return written


def test_run__table_of_examples():
    table = open_run(FILES / "run").table
    saved = load_file(FILES / "run" / "failures" / "examples.safetensors")
    assert int((table.values < 0).sum()) == EXPECTED["flagged"]
    for name, column in saved.items():
        assert torch.equal(getattr(table, name).nan_to_num(7), column.nan_to_num(7)), name


def test_run__directions():
    images, labels = Data().validation.images[:8], Data().validation.labels[:8]
    directions = open_run(FILES / "run").directions
    values = directions.decision_values(ColourEncoder().encode_images(images), labels)
    torch.testing.assert_close(values, torch.tensor(EXPECTED["decision_values"]))


def test_run__diary():
    diary = load_diary(FILES / "run" / "failures" / "epoch=0001-step=000012" / "modes.safetensors")
    assert {"analyses": diary.analyses, "modes": [mode.name for mode in diary.modes]} == EXPECTED["diary"]


def test_report_command__renders_the_page(files, capsys):
    assert main(["report", str(files / "run")]) == 0
    shown = capsys.readouterr().out
    page = (files / "run" / "failures" / "report.html").read_text()
    for name in (*EXPECTED["modes"], FEATURE_NAME):
        assert name.rpartition(" ")[0] in page
        assert name.rpartition(" ")[0] in shown


def test_diff_command__finds_the_same_changes(files, capsys):
    assert main(["diff", str(files / "run"), str(files / "later"), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    for kind in ("fixed", "new", "persistent"):
        found[kind] = [example["id"] for example in found[kind]]
    for side in ("a", "b"):
        assert {key: found[side][key] for key in EXPECTED["comparison"][side]} == EXPECTED["comparison"].pop(side)
    (note,) = found.pop("notes")  # since images identify examples
    assert "joined by id, because the runs have no digests of images" in note
    assert EXPECTED["comparison"].pop("notes") == []
    assert {key: found[key] for key in EXPECTED["comparison"]} == EXPECTED["comparison"]


# -- embeddings ------------------------------------------------------------------------------------------------------


def test_cache__of_the_packaged_encoder_hits(files):
    encoder = load_encoder("embedded:digits")
    assert encoder.fingerprint == EXPECTED["fingerprint"]
    store = EmbeddingCache().store(encoder.fingerprint)
    keys = embed(encoder, store, digits())
    assert len(list((files / "cache" / "v2" / encoder.fingerprint).iterdir())) == 1
    store.flush()
    assert len(list((files / "cache" / "v2" / encoder.fingerprint).iterdir())) == 1  # nothing new was written
    torch.testing.assert_close(store.get(keys)[:, :4], torch.tensor(EXPECTED["embeddings"]), atol=1e-3, rtol=1e-2)


def test_pool__shards_give_the_same_hardest_examples():
    manifest = PoolManifest.load(FILES / "pool")
    directions = FailureDirections.load(FILES / "run" / "failures" / "directions.safetensors")
    found = merge_shards(FILES / "pool", manifest, directions=directions, k=POOL["k"])
    saved = json.loads((FILES / "pool" / "hardest.json").read_text())
    hardest = [[(row["id"], row["decision_value"]) for row in entry["hardest"]] for entry in found.hardest()["classes"]]
    assert hardest == [[(row["id"], row["decision_value"]) for row in entry["hardest"]] for entry in saved["classes"]]


def test_pool__is_not_embedded_again(files, capsys):
    encoder = ColourEncoder()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    embedder = FailureTrainer(callbacks=[new_callback(encoder=encoder)], **options)
    embedder.embed(Classifier(), Data(), directions=files / "run", output=files / "pool", **POOL)
    assert encoder.embedded == 0
    assert (files / "pool" / "hardest.json").read_text() == (FILES / "pool" / "hardest.json").read_text()


# -- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["digits.yaml", "digits_interventions.yaml", "class_paths.yaml"])
def test_config__builds_the_same_objects(config, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of old paths: tests/core/test_moved.py holds them
        cli = FailureCLI(trainer_class=FailureTrainer, run=False, args=["--config", str(FILES / "configs" / config)])
    (callback,) = (one for one in cli.trainer.callbacks if isinstance(one, FailureModes))
    assert type(cli.model) is DigitClassifier
    assert type(cli.datamodule) is ColouredDigitsDataModule
    if config == "class_paths.yaml":
        assert callback.captions == CaptionVocabulary(adjectives=("red", "blue"))
        assert repr(callback.interventions) == repr((Upweight(factor=2.0, dry_run=True),))


@pytest.mark.slow
def test_config__saved_by_a_run_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    sizes = ["--data.init_args.train_size=100", "--data.init_args.val_size=100"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = str(FILES / "configs" / "digits_saved.yaml")
        assert main(["fit", "--config", config, "--trainer.fast_dev_run=1", *sizes]) == 0


# -- checkpoints -----------------------------------------------------------------------------------------------------


def state_of(name: str) -> dict:
    """Return what the callback kept in a checkpoint."""
    checkpoint = torch.load(FILES / f"{name}.checkpoint", weights_only=True)
    return checkpoint["callbacks"][EXPECTED["checkpoints"][name]["key"]]


@pytest.mark.parametrize("name", ["run", "lottery"])
def test_checkpoint__state_of_interventions(name):
    robust = None if name == "lottery" else ColourEncoder("robust")
    resumed = new_callback(robust_encoder=robust, auto_rollback=name == "run", **_verdict(name))
    assert resumed.state_key == EXPECTED["checkpoints"][name]["key"]
    resumed.load_state_dict(state_of(name))
    assert describe(resumed.state_dict()["steering"]) == EXPECTED["checkpoints"][name]["steering"]


def test_checkpoint__resumes_without_encoding_again(files):
    callback = new_callback()
    run = trainer(files / "run", callback, max_epochs=EPOCHS + 2, enable_checkpointing=False)
    run.fit(Classifier(), Data(), ckpt_path=files / "run.checkpoint")
    assert callback.encoder.embedded == 0
    assert run.current_epoch == EPOCHS + 2

    resumed = open_run(files / "run")
    assert [[report.epoch, report.global_step, report.accuracy] for report in resumed.history] == [
        *EXPECTED["history"],
        *([epoch, 6 * (epoch + 1), EXPECTED["history"][-1][2]] for epoch in (EPOCHS, EPOCHS + 1)),
    ]
    assert [mode.name for mode in resumed.report.modes] == EXPECTED["modes"]
    assert all(mode.since == 0 for mode in resumed.report.modes)
    found = compare(open_run(FILES / "run"), resumed)
    assert found.examples == len(Data().validation)
    assert not found.fixed
    assert not found.new

    steering = callback.state_dict()["steering"]
    assert len(steering["draws"]["plans"]["0 Upweight"]) >= len(
        EXPECTED["checkpoints"]["run"]["steering"]["draws"]["plans"]["0 Upweight"]
    )
    assert steering["turns"] == {"0 Upweight": EPOCHS}  # none for the epoch after the last


def test_checkpoint__that_is_about_to_roll_back(files):
    kept = files / "run" / "failures" / "before_interventions.pt"
    checkpoint = torch.load(files / "run.checkpoint", weights_only=True)
    state = checkpoint["callbacks"][EXPECTED["checkpoints"]["run"]["key"]]["steering"]["rollback"]
    state.update(file=str(kept), pending=True, undone={"epoch": 1, "reason": "accuracy fell"})
    torch.save(checkpoint, files / "pending.checkpoint")

    weights = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weights.append(pl_module.net[2].weight.detach().clone())

    run = trainer(files / "run", new_callback(), Watch(), max_epochs=EPOCHS + 1, enable_checkpointing=False)
    run.fit(Classifier(), Data(), ckpt_path=files / "pending.checkpoint")
    before = torch.load(kept, weights_only=True)["module"]["net.2.weight"]
    assert not torch.equal(before, checkpoint["state_dict"]["net.2.weight"])
    assert torch.equal(weights[0], before)


def test_checkpoint__with_a_lottery(files):
    callback = new_callback(verdict="lottery", robust_encoder=None, auto_rollback=False, pictures=False)
    run = trainer(files / "lottery", callback, max_epochs=EPOCHS + 1, enable_checkpointing=False)
    run.fit(*lottery_task(), ckpt_path=files / "lottery.checkpoint")
    state = describe(callback.state_dict()["steering"]["lottery"])
    assert state == EXPECTED["checkpoints"]["lottery"]["steering"]["lottery"]
    assert sorted(set(state["treated"].values())) == [False, True]


def _verdict(name: str) -> dict:
    return {"verdict": "lottery"} if name == "lottery" else {}
