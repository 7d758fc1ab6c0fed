"""The diary of a run on disk: it goes on after a resume, forgets an abandoned future, and survives damage."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures import FailureModes
from lightning_failures.analysis.diary import Diary, advance
from lightning_failures.callback import AdvancedOptions
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError
from lightning_failures.report.diary import histories
from lightning_failures.report.diary_storage import MAX_STATES, MODES_FILE, keep_diary, load_diary, save_diary
from tests.helpers.planted import PlantedMode, planted_result
from tests.helpers.toy import ColourEncoder, trainer

RED, THICK = PlantedMode(0, range(30)), PlantedMode(1, range(20, 50))


def never(words: str) -> None:
    raise AssertionError(words)


def analysis(epoch: int, *sights: PlantedMode, **options) -> FailureReport:
    return planted_result(epoch, ("nine", range(50), sights), ("two", (), ()), captions=True, **options)


def names(modes) -> list[tuple[str, str]]:
    return [(mode.name, mode.status) for mode in modes]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("step=")[1]) for path in folder.glob(f"*/{MODES_FILE}"))


def assert_same(one: Diary, other: Diary) -> None:
    assert (one.analyses, one.numbers, one.encoder) == (other.analyses, other.numbers, other.encoder)
    for mode, its in zip(one.modes, other.modes, strict=True):
        for name, value in vars(mode).items():
            if name == "direction":
                np.testing.assert_array_equal(value, its.direction)
            elif name in ("snapshot", "reference"):
                for part, other_part in zip(vars(value).values(), vars(getattr(its, name)).values(), strict=True):
                    np.testing.assert_array_equal(part, other_part)
            else:
                assert value == getattr(its, name), name


@pytest.fixture
def diary() -> Diary:
    made = Diary()
    for epoch in range(5):
        made, _ = advance(made, analysis(epoch, RED, *([THICK] if epoch > 2 else []), ids=range(90 + epoch // 3)))
    return made


# -- one file --------------------------------------------------------------------------------------------------


def test_save_diary__round_trip(tmp_path, diary):
    for number, one in enumerate((diary, Diary(), replace(diary, numbers={"\udce9 '\"\n": 3}, encoder=None))):
        path = tmp_path / f"{number}.safetensors"
        save_diary(one, path)
        read = load_diary(path)
        assert_same(read, one)
        distinct_ids = [
            {id(snapshot.ids) for mode in some.modes for snapshot in (mode.snapshot, mode.reference)}
            for some in (one, read)
        ]
        assert len(distinct_ids[0]) == len(distinct_ids[1])  # arrays that snapshots share are shared again


def test_load_diary__damage_is_one_error(tmp_path, diary):
    path, rng = tmp_path / MODES_FILE, np.random.default_rng(0)
    save_diary(diary, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, header, size=100), *rng.integers(header, len(whole), size=30)]
    for place in (int(place) for place in places):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        with contextlib.suppress(DataError):  # a bit of the padding, or of a key that nobody reads, harms nothing
            assert_same(load_diary(path), diary)
        path.write_bytes(whole[:place])
        with pytest.raises(DataError, match=MODES_FILE):
            load_diary(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # an example that failed
    with pytest.raises(DataError, match="checksum"):
        load_diary(path)


# -- a run -----------------------------------------------------------------------------------------------------


def test_keep_diary__goes_on_from_the_analysis_before(tmp_path):
    records = [names(keep_diary(analysis(epoch, RED), tmp_path, warn=never)) for epoch in range(4)]
    assert records == [[("nine 1", status)] for status in ("new", "new", "persisting", "persisting")]
    assert (tmp_path / "epoch=0003-step=000040" / MODES_FILE).exists()


def test_keep_diary__resumed_from_an_earlier_checkpoint_it_forgets_what_came_after(tmp_path):
    for epoch in range(4):
        keep_diary(analysis(epoch, RED, *([THICK] if epoch >= 2 else [])), tmp_path, warn=never)
    modes = keep_diary(analysis(2, RED, global_step=25), tmp_path, warn=never)
    assert names(modes) == [("nine 1", "persisting")]
    assert steps(tmp_path) == [10, 20, 25]
    assert [mode.name for mode in keep_diary(analysis(3, RED, THICK, global_step=35), tmp_path)] == ["nine 1", "nine 2"]


def test_keep_diary__epochs_count_where_steps_stand_still(tmp_path):
    """As in manual optimisation."""
    records = [names(keep_diary(analysis(epoch, RED, global_step=0), tmp_path, warn=never)) for epoch in range(4)]
    assert records == [[("nine 1", status)] for status in ("new", "new", "persisting", "persisting")]
    assert names(keep_diary(analysis(1, RED, global_step=0), tmp_path, warn=never)) == records[1]  # resumed
    assert sorted(path.parent.name[:10] for path in tmp_path.glob(f"*/{MODES_FILE}")) == ["epoch=0000", "epoch=0001"]


def test_keep_diary__the_same_analysis_twice_is_one(tmp_path):
    once = [keep_diary(analysis(epoch, RED), tmp_path, warn=never) for epoch in range(3)][-1]
    assert keep_diary(analysis(2, RED), tmp_path, warn=never) == once
    assert load_diary(tmp_path / "epoch=0002-step=000030" / MODES_FILE).analyses == 3


@pytest.mark.parametrize("stage", ["validate", "test", None])
def test_keep_diary__only_in_fit(tmp_path, stage):
    keep_diary(analysis(0, RED), tmp_path, warn=never)
    assert keep_diary(analysis(1, RED, stage=stage), tmp_path, warn=never) == ()
    assert steps(tmp_path) == [10]


def test_keep_diary__keeps_the_latest_states_and_the_first(tmp_path):
    for epoch in range(MAX_STATES + 5):
        keep_diary(analysis(epoch, RED), tmp_path, warn=never)
        assert len(steps(tmp_path)) <= MAX_STATES + 1
    assert steps(tmp_path) == [10, *range(60, 10 * MAX_STATES + 60, 10)]
    modes = keep_diary(analysis(2, RED), tmp_path, warn=never)  # a checkpoint older than all but the first
    assert names(modes) == [("nine 1", "new")]
    assert steps(tmp_path) == [10, 30]


def test_keep_diary__a_damaged_state_is_warned_of_and_the_one_before_taken(tmp_path):
    for epoch in range(3):
        keep_diary(analysis(epoch, RED), tmp_path, warn=never)
    (tmp_path / "epoch=0002-step=000030" / MODES_FILE).write_bytes(b"nothing of the kind")
    words: list[str] = []
    assert names(keep_diary(analysis(3, RED), tmp_path, warn=words.append)) == [("nine 1", "persisting")]
    assert len(words) == 1
    for path in tmp_path.glob(f"*/{MODES_FILE}"):
        path.write_bytes(b"")
    assert names(keep_diary(analysis(4, RED), tmp_path, warn=words.append)) == [("nine 1", "new")]
    with pytest.warns(UserWarning, match="failure diary"):
        keep_diary(analysis(0, RED, global_step=25), tmp_path)


def test_keep_diary__a_disk_that_fails_is_warned_of(tmp_path):
    (tmp_path / "epoch=0000-step=000010").write_text("in the way")
    words: list[str] = []
    assert names(keep_diary(analysis(0, RED), tmp_path, warn=words.append)) == [("nine 1", "new")]
    assert "could not be written" in words[0]


def test_keep_diary__folders_of_others_are_left_alone(tmp_path):
    for name in ("test-epoch=0000-step=000005", "epoch=x", "epoch=0000-step=000005-copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MODES_FILE).write_bytes(b"")
    assert names(keep_diary(analysis(0, RED), tmp_path, warn=never)) == [("nine 1", "new")]
    assert len(list(tmp_path.glob(f"*/{MODES_FILE}"))) == 4


# -- a training ------------------------------------------------------------------------------------------------


class Coloured(TensorDataset):
    """Four classes; where the bright bar stands tells which, the colour of the ground does in most images."""

    classes = ("north", "east", "south", "west")

    def __init__(self, size: int, usual: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(size) % 4
        self.usual = torch.rand(size, generator=generator) < usual
        colours = 0.1 + 0.5 * torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        ground = colours[torch.where(self.usual, labels, (labels + 1) % 4)]
        images = ground[:, :, None, None] + 0.15 * torch.rand(size, 3, 8, 8, generator=generator)
        for k in range(4):
            images[labels == k, :, 2 * k : 2 * k + 2, 2:6] += 0.12
        super().__init__(images.clamp(0, 1), labels)


class Learner(L.LightningModule):
    """Linear; from epoch ``relief`` on, the colours of its training images tell nothing."""

    def __init__(self, relief: int) -> None:
        super().__init__()
        self.net = nn.Linear(3 * 64, 4)
        self.relief = relief

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x.flatten(1)), y)

    def validation_step(self, batch, batch_idx):
        return {"logits": self.net(batch[0].flatten(1))}

    def train_dataloader(self):
        data = Coloured(800, 1.0 if self.trainer.current_epoch < self.relief else 0.5, seed=0)
        return DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))

    def val_dataloader(self):
        return DataLoader(Coloured(800, 0.5, seed=1), batch_size=100)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_fit__a_shortcut_that_training_no_longer_shows_is_cured(tmp_path):
    modes = FailureModes(
        encoder=ColourEncoder(), pictures=False, on_error="raise", advanced=AdvancedOptions(permutations=199)
    )
    trainer(tmp_path, modes, max_epochs=13, reload_dataloaders_every_n_epochs=1).fit(Learner(relief=5))
    folders = sorted(tmp_path.rglob("epoch=*"))
    reports = [FailureReport.from_json((folder / "report.json").read_bytes()) for folder in folders]
    diary = {mode.name: mode for mode in histories(reports)}
    validation = Coloured(800, 0.5, seed=1)
    for k, name in enumerate(Coloured.classes):
        first = diary[f"{name} 1"]
        unusual = int((~validation.usual & (validation.tensors[1] == k)).sum())
        assert first.epochs[:5] == (0, 1, 2, 3, 4)
        assert first.sizes[:5] == (unusual,) * 5
        assert first.statuses[:5] == ("new", "new", "persisting", "persisting", "persisting")
        assert first.status == "cured"
        assert 4 <= first.until <= 8
        assert first.epochs[-1] == first.until + 3
    assert json.loads((folders[-1] / "report.json").read_text())["modes"] == [m.to_dict() for m in reports[-1].modes]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_fit__resumed_it_goes_on_from_the_diary_of_its_checkpoint(tmp_path):
    def fit(epochs: int, **options) -> list[FailureReport]:
        modes = FailureModes(
            encoder=ColourEncoder(), pictures=False, on_error="raise", advanced=AdvancedOptions(permutations=99)
        )
        keep = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
        logger = TensorBoardLogger(tmp_path, version="run")
        made = trainer(tmp_path, modes, keep, logger=logger, max_epochs=epochs, enable_checkpointing=True)
        made.fit(Learner(relief=9), **options)
        folders = sorted(tmp_path.rglob("failures/epoch=*"))
        return [FailureReport.from_json((folder / "report.json").read_bytes()) for folder in folders]

    before = fit(5)
    assert [mode.seen for mode in before[-1].modes] == [5] * 4
    after = fit(4, ckpt_path=tmp_path / "checkpoints" / "epoch=1.ckpt", weights_only=True)
    assert [report.modes for report in after[:4]] == [report.modes for report in before[:4]]
    assert len(list(tmp_path.rglob(MODES_FILE))) == 4  # that of the fifth analysis is of a future that was given up


# -- digests and runs ------------------------------------------------------------------------------------------


def with_digests(result, first: int = 0):
    table = result.table
    return replace(result, table=replace(table, digests=torch.arange(len(table)) + first))


def test_save_diary__keeps_digests_and_the_run(tmp_path):
    diary = Diary()
    for epoch in range(3):
        result = analysis(epoch, RED, *([THICK] if epoch else []), ids=range(90 + epoch // 2), run_id="a run")
        diary, _ = advance(diary, with_digests(result) if epoch else result)  # the first one has no digests
    save_diary(diary, tmp_path / "t")
    read = load_diary(tmp_path / "t")
    assert_same(read, diary)
    assert read.run_id == "a run"
    references = {mode.name: mode.reference.digests is None for mode in read.modes}
    assert references == {"nine 1": True, "nine 2": False}


def test_keep_diary__of_another_run_in_the_folder_is_left_alone(tmp_path):
    for epoch in range(3):
        keep_diary(analysis(epoch, RED, run_id="first"), tmp_path, warn=never)
    assert names(keep_diary(analysis(3, RED, run_id="second"), tmp_path, warn=never)) == [("nine 1", "new")]
    assert names(keep_diary(analysis(0, RED, run_id="second", global_step=5), tmp_path, warn=never)) == [
        ("nine 1", "new")
    ]
    assert steps(tmp_path) == [5, 10, 20, 30]  # of the second run the later one is gone, as after a resume
    assert names(keep_diary(analysis(4, RED, run_id="first"), tmp_path, warn=never)) == [("nine 1", "persisting")]


def test_keep_diary__a_former_run_goes_on_and_a_fresh_one_does_not(tmp_path):
    for epoch in range(3):
        keep_diary(analysis(epoch, RED), tmp_path, warn=never)  # without a run id, as in a former version
    assert names(keep_diary(analysis(3, RED), tmp_path, warn=never)) == [("nine 1", "persisting")]
    assert names(keep_diary(analysis(4, RED, run_id="fresh"), tmp_path, warn=never)) == [("nine 1", "new")]
