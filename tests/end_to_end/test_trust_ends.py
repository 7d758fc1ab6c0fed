"""How a training ends, and what it leaves: hooks, reports, decisions, pages, states in checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_failures import FailureModes
from lightning_failures.encoders import load_encoder
from lightning_failures.interventions import AddFiltered, Upweight
from tests.helpers.toy import Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]


# -- hooks are on the module while an evaluation runs ------------------------------------------------------------------


class Scripts(Classifier):
    """A module that is exported in one of its hooks."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self.export)

    def export(self, *args) -> None:
        if not self.trainer.sanity_checking:
            torch.jit.script(self.net)


@pytest.mark.parametrize(
    "hook",
    [
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_validation_epoch_end",
        "on_validation_end",
        "on_train_end",
        "on_fit_end",
    ],
)
@pytest.mark.parametrize("options", [{}, {"logits_from": "net"}])
def test_hooks__the_module_can_be_exported(tmp_path, hook, options):
    failures = callback(**options)
    if hook == "on_validation_epoch_end":
        failures.keep_penultimate_features()
    trainer(tmp_path, failures).fit(Scripts(hook), loader(32), loader())
    assert failures.last_report.examples == 160


def hooks_of(module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


@pytest.mark.parametrize("every_n_epochs", [1, 2])
def test_hooks__only_while_a_validation_is_analysed(tmp_path, every_n_epochs):
    seen = []

    class Counts(Callback):
        def on_train_batch_end(self, run, module, *args):
            assert hooks_of(module) == 0

        def on_validation_batch_end(self, run, module, *args):
            seen.append((run.sanity_checking, run.current_epoch, hooks_of(module) > 0))

    run = trainer(tmp_path, callback(every_n_epochs=every_n_epochs), Counts(), max_epochs=2)
    run.fit(OracleClassifier(), loader(32), loader())
    assert {on for sanity, _, on in seen if sanity} == {True}
    assert {on for sanity, epoch, on in seen if not sanity and epoch == 0} == {every_n_epochs == 1}
    assert {on for _, epoch, on in seen if epoch == 1} == {True}


# -- reports -----------------------------------------------------------------------------------------------------------


def test_last_report__is_reset_by_a_new_fit(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(32), loader())
    assert failures.last_report is not None
    with pytest.warns(UserWarning, match=r"ended without a validation .*limit_val_batches=0"):
        trainer(tmp_path, failures, limit_val_batches=0).fit(OracleClassifier(), loader(32), loader())
    assert failures.last_report is None


STEPS = {
    "validations within the epoch": {"max_steps": 15, "max_epochs": -1, "val_check_interval": 5},
    "not at the last step": {"max_steps": 13, "max_epochs": -1, "val_check_interval": 5},
    "over epochs": {"max_steps": 50, "max_epochs": -1, "val_check_interval": 15, "check_val_every_n_epoch": None},
    "accumulated": {"max_steps": 5, "max_epochs": -1, "val_check_interval": 5, "accumulate_grad_batches": 3},
}


@pytest.mark.parametrize("options", [{}, {"every_n_epochs": 7}, {"every_n_validations": 4}])
@pytest.mark.parametrize("kind", STEPS)
def test_steps__the_last_validation_is_analysed(tmp_path, kind, options):
    failures, best, last = callback(**options), ModelCheckpoint(tmp_path, monitor="failures/accuracy", mode="max"), []

    class Notes(Callback):
        def on_validation_end(self, run, module):
            last.append(run.global_step)

    run = trainer(tmp_path, failures, best, Notes(), enable_checkpointing=True, **STEPS[kind])
    run.fit(OracleClassifier(), loader(320), loader())
    assert failures.last_report.global_step == last[-1]
    assert float(best.best_model_score) == pytest.approx(failures.last_report.accuracy)


class Manual(OracleClassifier):
    """A module that steps its optimizer itself, twice a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()


def test_steps__of_a_module_that_makes_them_itself(tmp_path):
    failures = callback()
    run = trainer(tmp_path, failures, max_steps=26, max_epochs=-1, val_check_interval=5)
    run.fit(Manual(), loader(320), loader())
    assert failures.last_report.global_step == 20  # the validation at 30 never comes


@pytest.mark.parametrize("how", ["time", "request"])
def test_stop__within_an_epoch_ends_with_an_analysis(tmp_path, how):
    failures = callback()

    class Stops(Callback):
        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            if how == "time" and batch_idx == 6:
                time.sleep(1.1)
            elif batch_idx == 6:
                run.should_stop = True

    extra = [Timer({"seconds": 1})] if how == "time" else []
    run = trainer(tmp_path, failures, Stops(), *extra, max_epochs=3, val_check_interval=5)
    run.fit(OracleClassifier(), loader(320), loader())
    assert failures.last_report.global_step == run.global_step < 20


UNTOLD = {
    "no step is validated": ({"max_steps": 3, "max_epochs": -1, "val_check_interval": 5}, {}, "max_steps=3"),
    "fewer epochs": ({"max_epochs": 2}, {"every_n_epochs": 3}, r"none of the 2 validations .* every_n_epochs=3"),
    "fewer validations": ({"max_epochs": 2}, {"every_n_validations": 3}, "every_n_validations=3"),
    "no loader": ({"max_epochs": 1, "limit_val_batches": 0}, {}, "limit_val_batches=0"),
}


@pytest.mark.parametrize("kind", UNTOLD)
def test_end__without_an_analysis_says_why(tmp_path, kind):
    options, ours, told = UNTOLD[kind]
    failures = callback(**ours)
    with pytest.warns(UserWarning, match=told):
        trainer(tmp_path, failures, **options).fit(OracleClassifier(), loader(320), loader())
    assert failures.last_report is None


# -- decisions ---------------------------------------------------------------------------------------------------------


class Pool(Images):
    """A pool that counts how often it is read."""

    def __init__(self) -> None:
        super().__init__(200, seed=9)
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


LAST = {
    "epochs": {"max_epochs": 1},
    "steps at the end of an epoch": {"max_steps": 4, "max_epochs": -1},
    "steps within the next check": {"max_steps": 3, "max_epochs": -1, "val_check_interval": 2},
}


@pytest.mark.parametrize("kind", LAST)
def test_decision__none_for_an_epoch_that_never_comes(tmp_path, kind):
    pool = Pool()
    failures = callback(interventions=[AddFiltered(pool, per_class=2, triage=False)])
    trainer(tmp_path, failures, **LAST[kind]).fit(OracleClassifier(), loader(64), loader(320, seed=1))
    assert failures.last_report is not None
    assert pool.reads <= 64


def test_decision__none_after_a_request_to_stop(tmp_path):
    class Stops(Callback):
        def on_train_batch_end(self, run, *args):
            run.should_stop = True

    pool = Pool()
    failures = callback(interventions=[AddFiltered(pool, per_class=2, triage=False)])
    run = trainer(tmp_path, Stops(), failures, max_epochs=5)
    run.fit(OracleClassifier(), loader(64), loader(320, seed=1))
    assert failures.last_report is not None
    assert pool.reads <= 64


def test_decision__of_a_training_that_goes_on(tmp_path):
    pool = Pool()
    failures = callback(interventions=[AddFiltered(pool, per_class=2, triage=False)])
    stops = EarlyStopping("failures/decision/accuracy", mode="max", patience=0)
    trainer(tmp_path, failures, stops, max_epochs=2).fit(OracleClassifier(), loader(64), loader(320, seed=1))
    assert pool.reads >= 200


def test_decision__a_dry_run_reports_what_it_would_change(tmp_path):
    failures = callback(interventions=[Upweight(4.0, triage=False, dry_run=True)])
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(64), loader(320, seed=1))
    assert failures.last_report["interventions"][0]["flagged"] > 0


# -- interruptions -----------------------------------------------------------------------------------------------------


class Ends(Callback):
    """Ends the training in the second epoch."""

    def __init__(self, error: BaseException, hook: str = "on_train_batch_end") -> None:
        self.error = error
        setattr(self, hook, self.end)

    def end(self, run, module, *args):
        if run.current_epoch == 1 and not run.sanity_checking:
            raise self.error


@pytest.fixture
def _own_handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores the signal from the first one on


@pytest.mark.usefixtures("_own_handler")
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_train_epoch_start"])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), SIGTERMException()])
def test_interruption__leaves_the_page_of_the_last_analysis(tmp_path, error, hook):
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"))
    run = trainer(tmp_path, failures, Ends(error, hook), max_epochs=3)
    raised = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)
    begin = time.monotonic()
    with pytest.raises(raised):
        run.fit(OracleClassifier(), loader(64), loader())
    assert time.monotonic() - begin < 60
    (page,) = tmp_path.rglob("report.html")
    assert "class 1" in page.read_text(encoding="utf-8")
    assert list(tmp_path.rglob("images/*.png"))
    assert hooks_of(run.lightning_module) == 0


def test_interruption__before_any_analysis_or_without_pictures_leaves_no_page(tmp_path):
    for failures, epoch in ((callback(pictures=True, every_n_epochs=9), 1), (callback(pictures=False), 1)):
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer(tmp_path, failures, Ends(RuntimeError("out of memory")), max_epochs=3).fit(
                OracleClassifier(), loader(64), loader()
            )
        assert epoch == 1
    assert not list(tmp_path.rglob("report.html"))


class Slow(Images):
    """Images that can no longer be read once the training has broken."""

    broken = False

    def __getitem__(self, index):
        if self.broken:
            time.sleep(0.3)
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def test_interruption__when_images_cannot_be_read_any_more(tmp_path):
    data = Slow(160)

    class Breaks(Ends):
        def end(self, run, module, *args):
            data.broken = run.current_epoch == 1
            super().end(run, module, *args)

    failures = callback(pictures=True, on_error="warn")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*could not draw pictures.*")
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer(tmp_path, failures, Breaks(RuntimeError("out of memory")), max_epochs=3).fit(
                OracleClassifier(), loader(64), torch.utils.data.DataLoader(data, batch_size=16)
            )
    assert list(tmp_path.rglob("report.html"))


# -- states in checkpoints ---------------------------------------------------------------------------------------------


def test_state_key__does_not_depend_on_how_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models" / "robust.pt"
    spellings = [path, str(path), "models/robust.pt", "./models/../models/robust.pt", Path("models/robust.pt")]
    assert len({FailureModes(encoder=None, robust_encoder=one).state_key for one in spellings}) == 1
    named, loaded = FailureModes(encoder="embedded:digits"), FailureModes(encoder=load_encoder("embedded:digits"))
    assert named.state_key == loaded.state_key


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.parametrize(
    "key",
    [
        "FailureModes{'encoder': '/elsewhere/colours.pt', 'robust_encoder': None}",
        "FailureModes{'encoder': 'other colours', 'robust_encoder': 'robust'}",
        "FailureModes",
    ],
)
def test_state__under_another_key_is_found_without_a_warning(tmp_path, key):
    first = callback(encoder=ColourEncoder("colours"))
    saves = ModelCheckpoint(tmp_path, filename="one")
    trainer(tmp_path, first, saves, enable_checkpointing=True).fit(OracleClassifier(), loader(32), loader())
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    checkpoint["callbacks"][key] = checkpoint["callbacks"].pop(first.state_key)
    torch.save(checkpoint, tmp_path / "other.ckpt")

    resumed = callback(encoder=ColourEncoder("colours"))
    saves = ModelCheckpoint(tmp_path, filename="one")
    run = trainer(tmp_path, resumed, saves, max_epochs=2, enable_checkpointing=True)
    run.fit(OracleClassifier(), loader(32), loader(), ckpt_path=tmp_path / "other.ckpt")
    assert resumed.state_dict()["run_id"] == first.state_dict()["run_id"]
    assert resumed.state_dict()["analyses"] == 2


# -- keys of classes ---------------------------------------------------------------------------------------------------


class WorseAndBetter(OracleClassifier):
    """A model that is wrong for one class in each epoch, a different one each time."""

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        wrong = labels == (3 - self.current_epoch)
        return 4.0 * torch.nn.functional.one_hot((labels + wrong.long()) % 4, 4).float()


def test_keys__of_a_monitored_class_are_those_of_this_epoch(tmp_path):
    key, seen = "failures/class/class_3/accuracy", []

    class Reads(Callback):
        def on_validation_end(self, run, module):
            if not run.sanity_checking:
                seen.append(float(run.callback_metrics[key]))

    best = ModelCheckpoint(tmp_path, monitor=key, mode="min")
    run = trainer(tmp_path, callback(worst_k=1), Reads(), best, max_epochs=3, enable_checkpointing=True)
    run.fit(WorseAndBetter(), loader(32), loader())
    assert seen == [0.0, 1.0, 1.0]


# -- locales and options of Python -------------------------------------------------------------------------------------

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.slow
def test_commands__in_an_ascii_locale_and_without_asserts(tmp_path):
    class Umlauts(Images):
        def __init__(self, size=160):
            super().__init__(size)
            self.classes = ["Zügel", "naïve", "猫", "d"]

    run = trainer(tmp_path, callback())
    run.fit(OracleClassifier(), loader(32), torch.utils.data.DataLoader(Umlauts(), batch_size=16))
    folder = next(tmp_path.rglob("report.json")).parent
    commands = [["--help"], ["report", str(folder)], ["diff", str(folder), str(folder)]]
    entry = f"from lightning_failures.cli.main import main; raise SystemExit(str([main(one) for one in {commands}]))"
    done = subprocess.run(
        [sys.executable, "-O", "-c", entry],
        env=os.environ | PLAIN | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1:] == [b"[0, 0, 0]"], done.stderr.decode(errors="replace")[-3000:]
    assert b"Traceback" not in done.stderr
