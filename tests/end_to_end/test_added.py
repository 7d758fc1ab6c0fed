"""Added examples, weights of the loss and suspected label errors, in a real Trainer."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.report.interventions import intervention_lines
from tests.end_to_end.test_interventions import DATA, Drawn, Numbered, dark_share, fit, steered, train_loader
from tests.helpers.toy import ColourEncoder, Images
from tests.processes.launch import fork, ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

FROM_POOL = 10_000


class Pool(Numbered):
    """Additional examples with indices from 10,000 on."""

    def __init__(self, size: int = 300, seed: int = 11) -> None:
        super().__init__(size, seed)

    def __getitem__(self, index):
        *item, number = super().__getitem__(index)
        return *item, number + FROM_POOL


POOL = Pool()


def filtered(pool=POOL, per_class=10, **options) -> AddFiltered:
    """Return an AddFiltered for which only exact copies are duplicates: the encoder maps most images close together."""
    return AddFiltered(pool, per_class, **({"similarity": 1.0} | options))


def added(epoch: list[int]) -> list[int]:
    return [index - FROM_POOL for index in epoch if index >= FROM_POOL]


# -- AddFiltered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["decision_value", "flagged_confidence", "confidence", "early", "random"])
def test_filtered__the_hard_ones_of_the_pool_join_the_next_epoch(tmp_path, by):
    failures = steered(filtered(by=by))
    module, _ = fit(tmp_path, failures, epochs=3)
    intervention = failures.last_report["interventions"][0]
    assert not added(module.epochs[0])
    assert all(len(epoch) == len(DATA) for epoch in module.epochs.values())
    joined = added(module.epochs[1])
    assert 15 < len(set(joined)) <= 40  # each with probability 96 / (96 + 40)
    dark = float(POOL.dark[joined].float().mean())
    assert dark > 0.9 if by != "random" else dark < 0.75
    assert intervention["options"]["pool"] == "Pool of 300"
    assert intervention["added"] == 40
    assert all(entry["added"] == 10 and entry["in_pool"] == 75 for entry in intervention["classes"])
    picked = {row for entry in intervention["classes"] for row in entry["pool_ids"]}
    assert set(added(module.epochs[2])) <= {*picked, *range(300)}
    json.dumps(intervention)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_filtered__persistent_workers_and_a_resumed_run_draw_the_same(tmp_path, workers):
    def run(folder, epochs, ckpt_path=None):
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        saves = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
        failures = steered(filtered(POOL, per_class=10, every_n_epochs=9))
        module, _ = fit(
            tmp_path,
            failures,
            epochs=epochs,
            data=train_loader(**options),
            callbacks=[saves],
            enable_checkpointing=True,
            ckpt_path=ckpt_path,
        )
        return module.epochs

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "resumed", 4, ckpt_path=tmp_path / "cut" / "epoch=1.ckpt")
    assert added(whole[1])
    assert added(whole[3])
    assert resumed == {epoch: whole[epoch] for epoch in (2, 3)}


def test_filtered__longer_epochs_leave_nothing_out(tmp_path):
    failures = steered(filtered(POOL, per_class=10, grow_epoch=True))
    module, _ = fit(tmp_path, failures, reload_dataloaders_every_n_epochs=1)
    assert len(module.epochs[1]) == len(DATA) + 40
    assert sorted(index for index in module.epochs[1] if index < FROM_POOL) == list(range(len(DATA)))
    assert len(set(added(module.epochs[1]))) == 40


def test_filtered__diverse_picks_are_hard_and_differ_more(tmp_path):
    picked = {}
    for diverse in (False, True):
        failures = steered(filtered(Pool(600), 6, diverse=diverse, every_n_epochs=9))
        fit(tmp_path / str(diverse), failures, epochs=2)
        (intervention,) = failures.last_report["interventions"]
        assert intervention["options"]["diverse"] is diverse
        assert all(entry["added"] == 6 for entry in intervention["classes"])
        picked[diverse] = [entry["pool_ids"] for entry in intervention["classes"]]
    data = Pool(600)
    unit = torch.nn.functional.normalize(ColourEncoder().encode_images(data.images))

    def closest(rows):
        return float((unit[rows] @ unit[rows].T - 2 * torch.eye(len(rows))).max())

    for hardest, spread in zip(picked[False], picked[True], strict=True):
        assert float(data.dark[spread].float().mean()) > 0.9
        assert hardest[0] == spread[0]  # the hardest one
        assert closest(spread) < closest(hardest)


def test_filtered__the_gain_that_came_stands_beside_the_expected_one(tmp_path):
    failures = steered(filtered(POOL, 10))
    fit(tmp_path, failures, epochs=3)
    report = failures.last_report.report
    (entry,) = report.interventions
    first = json.loads(sorted(tmp_path.rglob("epoch=*/report.json"))[0].read_text())
    gains = [(one["gain"], one["flagged"]) for one in first["classes"] if one["pattern"]]
    expected = sum(gain for gain, _ in gains) / sum(flagged for _, flagged in gains)
    assert entry["expected_drop"] == pytest.approx(expected)  # that of the first decision, at the third
    assert 0.5 < expected <= 1
    assert all(one["expected_gain"] > 0 for one in first["interventions"][0]["classes"])
    rates = [point["report/flagged_error_rate"] for point in entry["trend"]]
    assert len(rates) == 3
    (line,) = intervention_lines(report)
    fallen = f"has fallen by 0.0 points ({100 * rates[0]:.1f} % -> {100 * rates[-1]:.1f} %)"
    assert f"expected to fall by up to {100 * expected:.1f} points, {fallen}" in line


def test_filtered__training_images_are_not_added_again(tmp_path):
    class Same(Pool):
        def __init__(self):
            super().__init__(len(DATA), seed=5)

    failures = steered(filtered(Same(), per_class=5))
    module, _ = fit(tmp_path, failures)
    intervention = failures.last_report["interventions"][0]
    assert not added(module.epochs[1])
    assert all(entry["in_training"] == entry["in_pool"] == 24 for entry in intervention["classes"])
    assert all("copies of training images" in entry["reason"] for entry in intervention["classes"])


def test_filtered__empty_pool_and_absent_class_are_told(tmp_path):
    failures = steered(AddFiltered([], per_class=5))
    module, _ = fit(tmp_path, failures)
    assert not added(module.epochs[1])
    assert {entry["reason"] for entry in failures.last_report["interventions"][0]["classes"]} == {"empty pool"}

    class Some(Pool):
        def __init__(self):
            super().__init__()
            self.labels = self.labels % 2

    failures = steered(filtered(Some(), per_class=5))
    fit(tmp_path, failures)
    classes = failures.last_report["interventions"][0]["classes"]
    assert [entry["added"] for entry in classes] == [5, 5, 0, 0]
    assert classes[3]["reason"] == "pool class absent"


def test_filtered__a_pool_of_another_form_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"AddFiltered: its examples look like .*must have the same form"):
        fit(tmp_path, steered(AddFiltered(Images(20))))


def test_filtered__dry_run_picks_and_changes_nothing(tmp_path):
    failures = steered(filtered(POOL, per_class=10, dry_run=True))
    module, _ = fit(tmp_path, failures)
    assert sorted(module.epochs[1]) == list(range(len(DATA)))
    intervention = failures.last_report["interventions"][0]
    assert (intervention["added"], intervention["changes_training"]) == (40, False)


def test_filtered__leaves_the_loader_as_it_was(tmp_path):
    data = train_loader()
    before = (data.dataset, data.sampler)
    fit(tmp_path, steered(filtered(POOL, per_class=10)), data=data)
    assert (data.dataset, data.sampler) == before


def test_filtered__the_pool_is_embedded_once(tmp_path):
    failures = steered(filtered(POOL, per_class=10))
    fit(tmp_path, failures, epochs=3)
    assert failures.encoder.embedded == len(POOL) + len(DATA) + 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 3}, "pool"),
        ({"pool": [], "per_class": 0}, "per_class"),
        ({"pool": [], "by": "hardness"}, "flagged_confidence"),
        ({"pool": [], "similarity": 0.0}, "similarity"),
    ],
)
def test_filtered__wrong_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AddFiltered(**options)


# -- weights of the loss -------------------------------------------------------------------------------------


class Weighs(Drawn):
    """Records the weight of each example."""

    def training_step(self, batch, batch_idx):
        x, y, index, weight = batch
        seen = self.epochs.setdefault(self.current_epoch, [])
        seen.extend(zip(index.tolist(), weight.tolist(), strict=True))
        assert weight.dtype == torch.float32
        return (weight * torch.nn.functional.cross_entropy(self.net(x), y, reduction="none")).mean()


@pytest.mark.parametrize("workers", [0, 2])
def test_weight_key__the_step_gets_the_weights_and_draws_stay(tmp_path, workers):
    failures = steered(Upweight(factor=4.0, weight_key="weight"))
    data = train_loader(num_workers=workers, persistent_workers=workers > 0)
    module, _ = fit(tmp_path, failures, data=data, module=Weighs())
    first, second = (dict(module.epochs[epoch]) for epoch in (0, 1))
    assert set(first.values()) == {1.0}
    assert sorted(second) == list(range(len(DATA)))
    heavy = [index for index, weight in second.items() if weight > 1]
    assert dark_share(heavy) > 0.9
    assert set(second.values()) == {min(second.values()), max(second.values())}
    assert max(second.values()) == pytest.approx(4 * min(second.values()))
    assert sum(second.values()) == pytest.approx(len(DATA), rel=1e-5)
    assert len(heavy) > 10


@pytest.mark.parametrize("options", [{"dry_run": True}, {"factor": 1.0}])
def test_weight_key__is_there_where_nothing_acts(tmp_path, options):
    module, _ = fit(tmp_path, steered(Upweight(weight_key="weight", **options)), module=Weighs())
    assert {weight for epoch in module.epochs.values() for _, weight in epoch} == {1.0}


def test_weight_key__overfit_batches_is_refused(tmp_path):
    data = train_loader(shuffle=False)
    with pytest.raises(ConfigurationError, match="overfit_batches"):
        fit(tmp_path, steered(Upweight(weight_key="weight")), data=data, module=Weighs(), overfit_batches=2)


def test_weight_key__mappings_get_a_key(tmp_path):
    class Mapped(Numbered):
        def __getitem__(self, index):
            x, y, number = super().__getitem__(index)
            return {"image": x, "label": y, "number": number}

    class Reads(Weighs):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[k] for k in ("image", "label", "number", "w")], batch_idx)

    module, _ = fit(
        tmp_path, steered(Upweight(factor=3.0, weight_key="w")), data=train_loader(Mapped()), module=Reads()
    )
    assert len({weight for _, weight in module.epochs[1]}) == 2


# -- suspected labels ----------------------------------------------------------------------------------------


class Mislabelled(Numbered):
    """Images with the label of the next class for the dark ones that the model gets right: one in ten."""

    def __init__(self) -> None:
        super().__init__(size=320)
        pixels = self.images[:, 1, 3, 3]
        self.flipped = (self.images.mean((1, 2, 3)) < 0.45) & (pixels * 1000 % 1 > 0.85)
        self.labels = torch.where(self.flipped, (self.labels + 1) % 4, self.labels)


class Telling:
    """Embeddings that encode class and brightness."""

    name, fingerprint, dim = "telling", "tests-telling", 6

    def encode_images(self, images):
        label = (images[:, 0, 0, 0] * 10).round().long() % 4
        bright = images.mean((1, 2, 3))[:, None]
        near = torch.nn.functional.one_hot(label, 4).float()
        return torch.cat([near, 2 * bright, images[:, :1, 3, 3] * 0.05], dim=1)


def test_triage__suspected_labels_are_left_out_and_listed(tmp_path):
    data = Mislabelled()
    reports = {}
    for triage in (True, False):
        failures = steered(Upweight(factor=4.0, triage=triage, max_flagged=1.0), encoder=Telling())
        module, _ = fit(tmp_path, failures, data=DataLoader(data, batch_size=16, shuffle=True))
        reports[triage] = failures.last_report["interventions"][0]
        assert module.epochs[1]
    intervention = reports[True]
    found = [entry["id"] for entry in intervention["review"]]
    assert reports[False]["review"] == []
    assert intervention["suspected"] == len(found) == sum(entry["suspected"] for entry in intervention["classes"])
    assert set(found) <= set(data.flipped.nonzero().flatten().tolist())  # none of the dark ones
    assert intervention["flagged"] == reports[False]["flagged"] - len(found)
    assert len(found) > 0.5 * int(data.flipped.sum())
    assert all(entry["neighbours_agreeing"] >= 8 for entry in intervention["review"])


def test_triage__wrong_labels_of_a_pool_are_not_added(tmp_path):
    pool = Mislabelled()
    joined = {}
    for triage in (True, False):
        one = filtered(pool, 20, by="flagged_confidence", triage=triage)
        failures = steered(one, encoder=Telling())
        fit(tmp_path, failures)
        entries = failures.last_report["interventions"][0]["classes"]
        joined[triage] = torch.tensor([row for entry in entries for row in entry["pool_ids"]])
        assert (sum(entry["suspected"] for entry in entries) > 0) == triage
    wrong = {triage: pool.flipped[rows].float().mean().item() for triage, rows in joined.items()}
    assert wrong[True] < 0.5 * wrong[False]


def test_triage__a_module_without_forward_is_told_and_goes_on(tmp_path):
    class NoForward(Drawn):
        forward = torch.nn.Module.forward

        def __init__(self):
            super().__init__()
            del self._modules["dropout"]

        def training_step(self, batch, batch_idx):
            x, y, _ = batch
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def validation_step(self, batch, batch_idx):
            x, _ = batch
            return {"logits": self._guess(x * 0.25 + 0.5)}

    failures = steered()
    with pytest.warns(UserWarning, match="Suspected label errors are not detected"):
        fit(tmp_path, failures, module=NoForward())
    assert failures.last_report["interventions"][0]["flagged"] > 10


# -- two processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ddp__two_processes_share_one_epoch_with_added_examples(tmp_path):
    for ended in fork("ddp_added", tmp_path, environments=ranks(2), timeout=240):
        assert ended.status == 0, ended.said[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{k}.json").read_text()) for k in (0, 1))
    assert first["interventions"] == second["interventions"]
    assert first["interventions"][0]["added"] == 40
    wrong = DATA.dark & (DATA.images[:, 1, 3, 3] * 1000 % 1 < 0.8)
    assert first["interventions"][1]["flagged"] == int(wrong.sum())
    both = first["epoch"] + second["epoch"]
    assert len(both) == len(DATA)
    assert not set(first["epoch"]) & set(second["epoch"])
    assert 15 < len(added(both)) < 40
