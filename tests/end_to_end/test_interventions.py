"""Interventions in a real Trainer: the draws, what remains unchanged, and what is refused."""

from __future__ import annotations

import json
import random
import warnings

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, WeightedRandomSampler

from lightning_failures import FailureModes
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.sampler import WeightedSampler
from tests.helpers.toy import Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer
from tests.processes.launch import fork, ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Numbered(Images):
    """Images with their indices; a third of the training images are dark."""

    def __init__(self, size: int = 96, seed: int = 5) -> None:
        super().__init__(size, seed=seed)

    def __getitem__(self, index):
        return *super().__getitem__(index), index


class Drawn(OracleClassifier):
    """A model that records the examples of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, list[int]] = {}

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        self.epochs.setdefault(self.current_epoch, []).extend(index.tolist())
        return torch.nn.functional.cross_entropy(self.net(x), y)


DATA = Numbered()


def train_loader(data=DATA, **options) -> DataLoader:
    return DataLoader(data, **({"batch_size": 16, "shuffle": True} | options))


def steered(*interventions, **options):
    return callback(interventions=interventions or [Upweight(factor=4.0)], pictures=False, **options)


def fit(tmp_path, failures, *, data=None, epochs=2, module=None, seed=1, val=None, ckpt_path=None, **options):
    """Fit; return the module and the Trainer."""
    L.seed_everything(seed, verbose=False)
    module = module or Drawn()
    extra = options.pop("callbacks", [])
    run = trainer(tmp_path, *([] if failures is None else [failures]), *extra, max_epochs=epochs, **options)
    run.fit(module, train_loader() if data is None else data, val or loader(400), ckpt_path=ckpt_path)
    return module, run


def dark_share(indices) -> float:
    return float(DATA.dark[indices].float().mean())


# -- what it does --------------------------------------------------------------------------------------------


def test_upweight__the_flagged_come_more_often_from_the_next_epoch_on(tmp_path):
    failures = steered()
    module, _ = fit(tmp_path, failures, epochs=3)
    assert all(len(epoch) == len(DATA) for epoch in module.epochs.values())
    assert sorted(module.epochs[0]) == list(range(len(DATA)))
    for epoch in (1, 2):
        assert dark_share(module.epochs[epoch]) > dark_share(module.epochs[0]) + 0.15
    (intervention,) = failures.last_report["interventions"]
    assert [intervention[key] for key in ("kind", "epoch", "began")] == ["Upweight", 2, 1]  # none for an epoch 3
    assert intervention["options"]["factor"] == 4.0
    assert intervention["verdict"] == "not measured"
    assert [point["epoch"] for point in intervention["trend"]] == [0, 1, 2]
    flagged = sum(entry["flagged"] for entry in intervention["classes"])
    assert intervention["flagged"] == flagged > 10


def test_upweight__what_is_drawn_is_what_is_told(tmp_path):
    failures = steered(Upweight(factor=3.0, every_n_epochs=9))
    module, _ = fit(tmp_path, failures, epochs=3)
    (intervention,) = failures.last_report["interventions"]
    flagged, size = intervention["flagged"], len(DATA)
    expected = 3 * size / (size + 2 * flagged)  # expected draws of a flagged example
    assert 1 < expected < 2
    assert sum(entry["share_of_all_draws"] for entry in intervention["classes"]) == pytest.approx(
        expected * flagged / size
    )
    for epoch in (1, 2):  # each comes once, and some a second time
        assert size - len(set(module.epochs[epoch])) == pytest.approx(flagged * (expected - 1), abs=1)
    assert module.epochs[1] != module.epochs[2]


def test_report__two_parts_and_a_frozen_slice(tmp_path):
    failures = steered()
    seen = []

    class Keeps(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    fit(tmp_path, failures, callbacks=[Keeps()], num_sanity_val_steps=0)
    report = failures.last_report
    part = report.parts.report.grades
    assert report.examples + len(part) == 400
    assert not set(report.classes[0].hardest_ids) & set(part.ids.tolist())
    assert seen[0]["failures/report/accuracy"] == pytest.approx(part.correct.float().mean().item())
    assert seen[0]["failures/report/flagged_error_rate"] > 0.7  # the dark ones
    assert {"failures/report/worst_class_accuracy", "failures/accuracy"} <= seen[0].keys()
    (file,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert json.loads(file.read_text())["interventions"] == json.loads(report.to_json())["interventions"]
    assert report["interventions"][0]["slice"]["epoch"] == 0
    assert any("discovery" in note for note in report.notes)


def test_schedule__from_start_to_stop(tmp_path):
    module, _ = fit(tmp_path, steered(Upweight(factor=8.0, start_epoch=2, stop_epoch=3)), epochs=4)
    plain = [sorted(module.epochs[epoch]) == list(range(len(DATA))) for epoch in range(4)]
    assert plain == [True, True, False, True]


def test_schedule__decided_every_second_epoch(tmp_path):
    failures = steered(Upweight(every_n_epochs=2))
    fit(tmp_path, failures, epochs=4)
    assert failures.last_report["interventions"][0]["epoch"] == 3
    failures = steered(Upweight(every_n_epochs=3))
    fit(tmp_path, failures, epochs=3)
    assert failures.last_report["interventions"][0]["epoch"] == 1


def test_grow_epoch__nothing_is_left_out(tmp_path):
    module, _ = fit(tmp_path, steered(Upweight(grow_epoch=True)), reload_dataloaders_every_n_epochs=1)
    assert set(module.epochs[1]) == set(range(len(DATA)))
    assert len(module.epochs[1]) > len(DATA) + 10
    with pytest.raises(ConfigurationError, match="reload_dataloaders_every_n_epochs=1"):
        fit(tmp_path, steered(Upweight(grow_epoch=True)))


# -- what it leaves alone ------------------------------------------------------------------------------------


def trained(tmp_path, failures, data=None):
    module, _ = fit(tmp_path, failures, data=data)
    return module.epochs, [p.tolist() for p in module.parameters()], torch.get_rng_state().tolist(), random.random()


@pytest.mark.parametrize(
    "interventions",
    [[Upweight(factor=1.0)], [Upweight(factor=4.0, dry_run=True)], [Upweight(factor=4.0, start_epoch=9)]],
    ids=["factor 1", "dry run", "not yet"],
)
def test_no_trace__without_an_active_intervention(tmp_path, interventions):
    plain = trained(tmp_path, None)
    failures = steered(*interventions)
    assert trained(tmp_path, failures) == plain
    if interventions[0].dry_run:
        (intervention,) = failures.last_report["interventions"]
        assert intervention["flagged"] > 10
        assert not intervention["changes_training"]


def test_nothing_flagged__no_pattern_leaves_things_alone(tmp_path):
    class Right(Drawn):
        def _guess(self, pixels):
            return 4.0 * torch.nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long() % 4, 4).float()

    failures = steered()
    module, _ = fit(tmp_path, failures, module=Right())
    assert sorted(module.epochs[1]) == list(range(len(DATA)))
    (intervention,) = failures.last_report["interventions"]
    assert intervention["began"] is None
    assert all(entry["reason"].startswith("skipped") for entry in intervention["classes"])


def test_every_example_flagged__is_capped(tmp_path):
    dark = Numbered()
    dark.images = dark.images * ~DATA.dark[:, None, None, None] * 0.6 + dark.images * DATA.dark[:, None, None, None]
    dark.images[:, :, 0, 0] = 0.1 * dark.labels[:, None]
    failures = steered()
    module, _ = fit(tmp_path, failures, data=train_loader(dark))
    assert len(module.epochs[1]) == len(DATA)
    assert all(
        entry["share"] is None or entry["share"] <= 0.5 for entry in failures.last_report["interventions"][0]["classes"]
    )


class Broken(Drawn):
    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise RuntimeError("planted")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("module", [Drawn, Broken])
def test_detach__the_loader_is_as_it_was(tmp_path, module):
    data = train_loader()
    before = data.sampler, data.batch_sampler
    if module is Broken:
        with pytest.raises(RuntimeError, match="planted"):
            fit(tmp_path, steered(), data=data, module=Broken())
    else:
        fit(tmp_path, steered(), data=data)
    assert (data.sampler, data.batch_sampler) == before
    assert data.batch_sampler.sampler is before[0]


def test_failing_decision__training_goes_on_and_the_report_is_kept(tmp_path):
    class Unreadable(Numbered):
        def __getitems__(self, indices):  # how loaders of whole batches read
            if len(indices) > 16:
                raise OSError("planted")
            return [self[i] for i in indices]

    failures = steered(on_error="warn")
    with pytest.warns(UserWarning, match="skips their decision.*planted"):
        module, _ = fit(tmp_path, failures, data=train_loader(Unreadable()))
    assert sorted(module.epochs[1]) == list(range(len(DATA)))
    assert failures.last_report.examples > 0


# -- workers and resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume__same_weights_and_order_as_the_uninterrupted_run(tmp_path, workers):
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    whole, _ = fit(
        tmp_path, steered(), data=train_loader(**options), epochs=4, callbacks=[keep], enable_checkpointing=True
    )
    path = tmp_path / "kept" / "epoch=1.ckpt"
    saved = torch.load(path, weights_only=True)["callbacks"]
    assert any("steering" in state for state in saved.values())
    again = ModelCheckpoint(tmp_path / "again")
    resumed, _ = fit(
        tmp_path,
        steered(),
        data=train_loader(**options),
        epochs=4,
        seed=99,
        callbacks=[again],
        enable_checkpointing=True,
        ckpt_path=path,
    )
    assert resumed.epochs == {epoch: whole.epochs[epoch] for epoch in (2, 3)}
    assert sorted(whole.epochs[2]) != list(range(len(DATA)))


# -- loaders: the table of docs/interventions.md -------------------------------------------------------------


class Own(DataLoader):
    """A loader class of the user."""


class Module(Drawn):
    def train_dataloader(self):
        return train_loader()


class Modules(L.LightningDataModule):
    def train_dataloader(self):
        return train_loader()

    def val_dataloader(self):
        return loader(400)


COMPOSED = {
    "shuffled": train_loader,
    "in order": lambda: train_loader(shuffle=False),
    "own generator": lambda: train_loader(generator=torch.Generator().manual_seed(3)),
    "drop last": lambda: train_loader(batch_size=20, drop_last=True),
    "sampler of indices": lambda: train_loader(shuffle=False, sampler=list(range(0, 96, 2))),
    "weighted sampler": lambda: train_loader(
        shuffle=False, sampler=WeightedRandomSampler([0.0] * 48 + [1.0] * 48, num_samples=96)
    ),
    "plain batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 16, False)),
    "subclass": lambda: Own(DATA, batch_size=16, shuffle=True),
    "combined, one loader": lambda: CombinedLoader([train_loader()], "max_size_cycle"),
}


@pytest.mark.parametrize("kind", COMPOSED)
def test_loaders__composed(tmp_path, kind):
    class Single(Drawn):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0] if kind.startswith("combined") else batch, batch_idx)

    module, _ = fit(tmp_path, steered(Upweight(factor=8.0)), data=COMPOSED[kind](), module=Single())
    first, second = module.epochs[0], module.epochs[1]
    assert len(first) == len(second)
    assert dark_share(second) > dark_share(first) + 0.1
    if kind == "weighted sampler":  # weights multiply
        assert min(second) >= 48


@pytest.mark.parametrize("where", ["module", "datamodule"])
def test_loaders__of_any_origin(tmp_path, where):
    failures, module = steered(), Module() if where == "module" else Drawn()
    run = trainer(tmp_path, failures, max_epochs=2)
    L.seed_everything(1, verbose=False)
    if where == "module":
        run.fit(module, val_dataloaders=loader(400))
    else:
        run.fit(module, datamodule=Modules())
    assert dark_share(module.epochs[1]) > dark_share(module.epochs[0]) + 0.1


class Groups(BatchSampler):
    def __iter__(self):
        return iter([list(range(16))] * 6)


class Stateful(DataLoader):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([DATA[i] for i in range(32)])


REFUSED = {
    "iterable": (lambda: DataLoader(Stream(), batch_size=16), "Give a map-style dataset"),
    "not a DataLoader": (lambda: [next(iter(train_loader()))], "Give a torch DataLoader"),
    "own batches": (
        lambda: DataLoader(DATA, batch_sampler=Groups(RandomSampler(DATA), 16, False)),
        "Give the DataLoader",
    ),
    "several": (lambda: [train_loader(), train_loader()], "ConcatDataset"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_loaders__refused_with_the_remedy(tmp_path, kind):
    make, remedy = REFUSED[kind]
    module = Drawn()
    with pytest.raises(ConfigurationError, match=remedy):
        fit(tmp_path, steered(), data=make(), module=module)
    assert not module.epochs


def test_loaders__stateful_ones_are_composed_but_for_weight_key(tmp_path):
    module, _ = fit(tmp_path, steered(), data=Stateful(DATA, batch_size=16))
    assert dark_share(module.epochs[1]) > dark_share(module.epochs[0]) + 0.1
    with pytest.raises(ConfigurationError, match=r"weight_key does not work with a Stateful.*Use a plain"):
        fit(tmp_path, steered(Upweight(weight_key="weight")), data=Stateful(DATA, batch_size=16))


def test_loaders__one_for_training_and_validation_is_refused(tmp_path):
    data = DataLoader(Images(), batch_size=16)
    with pytest.raises(ConfigurationError, match="Give each its own"):
        fit(tmp_path, steered(), data=data, val=data, module=OracleClassifier())


def test_loaders__overfit_batches_pass_through(tmp_path):
    with pytest.warns(UserWarning, match="overfit_batches interventions leave"):
        module, _ = fit(tmp_path, steered(), data=train_loader(shuffle=False), overfit_batches=2, val=loader(32))
    assert module.epochs[0] == module.epochs[1] == list(range(32))


def test_loaders__without_distributed_sampler(tmp_path):
    module, _ = fit(tmp_path, steered(), use_distributed_sampler=False)
    assert dark_share(module.epochs[1]) > dark_share(module.epochs[0]) + 0.1


# -- the view of the training set ----------------------------------------------------------------------------


class Noisy(Numbered):
    def __getitem__(self, index):
        image, label, index = super().__getitem__(index)
        return image.flip(-1) if torch.rand(()) < 0.5 else image, label, index


def test_view__random_transforms_are_told_and_embedded_once(tmp_path):
    encoder = ColourEncoder("noisy")
    failures = steered(encoder=encoder)
    with pytest.warns(UserWarning, match="train_analysis_dataset"):
        fit(tmp_path, failures, data=train_loader(Noisy()), epochs=3)
    assert encoder.embedded <= 400 + len(DATA)


@pytest.mark.parametrize("as_method", [False, True])
def test_view__of_the_datamodule(tmp_path, as_method):
    class WithView(Modules):
        def train_dataloader(self):
            return train_loader(Noisy())

        if as_method:

            def train_analysis_dataset(self):
                return Images(len(DATA), seed=5)
        else:
            train_analysis_dataset = Images(len(DATA), seed=5)

    L.seed_everything(1, verbose=False)
    module = Drawn()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*train_analysis_dataset.*")
        trainer(tmp_path, steered(), max_epochs=2).fit(module, datamodule=WithView())
    assert dark_share(module.epochs[1]) > dark_share(module.epochs[0]) + 0.1


def test_view__of_another_length_is_refused(tmp_path):
    class WithView(Modules):
        train_analysis_dataset = Images(7)

    with pytest.raises(ConfigurationError, match="has 7 examples, the training set 96"):
        trainer(tmp_path, steered(), max_epochs=2).fit(Drawn(), datamodule=WithView())


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [True, False])
def test_encoder__of_the_trained_model_is_refused(tmp_path, copy):
    model = Classifier()
    encoder = ModuleEncoder(model.net, "1", image_size=8, copy=copy)
    with pytest.raises(ConfigurationError, match=r"B\.1\.6"):
        fit(tmp_path, steered(encoder=encoder), data=loader(), module=model)
    other = ModuleEncoder(Classifier().net, "1", image_size=8)
    fit(tmp_path, steered(encoder=other), data=loader(), module=model, epochs=1, val=loader(32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interventions": ["Upweight"]}, "sequence of interventions"),
        ({"interventions": Upweight()}, "sequence of interventions"),
        ({"interventions": [Upweight()], "encoder": None}, "interventions need failure directions"),
        ({"interventions": [Upweight()], "permutations": 0}, "without p-values"),
        ({"interventions": [Upweight()], "task": "multilabel"}, "one class an example"),
    ],
)
def test_options__refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        callback(**options)


POOL = {"class_path": "lightning_failures.bundled.digits.ColouredDigits", "init_args": {"split": "train", "size": 20}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Upweight", {"factor": 3.0, "stop_epoch": 9, "weight_key": "weight"}),
        ("AddFiltered", {"pool": POOL, "per_class": 3, "by": "flagged_confidence"}),
        ("AddSynthetic", {"generator": "embedded:digits", "prompt": "direction", "head_only": True}),
    ],
)
def test_options__from_yaml(monkeypatch, kind, options):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=FailureModes)
    one = {"class_path": f"lightning_failures.interventions.{kind}", "init_args": options}
    failures = {"class_path": "lightning_failures.FailureModes", "init_args": {"interventions": [one]}}
    (built,) = parser.instantiate_classes(parser.parse_object({"callback": failures})).callback.interventions
    assert type(built).__name__ == kind
    expected = {name: value for name, value in options.items() if name != "pool"}
    assert {name: built.options[name] for name in expected} == expected
    if "pool" in options:
        assert built.options["pool"] == "ColouredDigits of 20"


def test_two_callbacks__only_one_may_intervene(tmp_path):
    with pytest.raises(ConfigurationError, match="Only one FailureModes"):
        fit(tmp_path, steered(), callbacks=[steered(encoder=ColourEncoder("b"))])


def test_monitor__the_report_part_is_not_for_choosing(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="failures/report/accuracy")
    with pytest.raises(ConfigurationError, match="report part"):
        fit(tmp_path, steered(), callbacks=[keep], enable_checkpointing=True)


def test_sampler__is_in_place_during_training(tmp_path):
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer, *args):
            data = trainer.train_dataloader
            seen.append((type(data.sampler), data.batch_sampler.sampler is data.sampler, data.batch_size))

    fit(tmp_path, steered(), callbacks=[Looks()], epochs=1)
    assert set(seen) == {(WeightedSampler, True, 16)}
    assert isinstance(train_loader(shuffle=False).sampler, SequentialSampler)


# -- several processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ddp__two_processes_draw_disjoint_shares_of_one_weighted_epoch(tmp_path):
    for ended in fork("ddp_interventions", tmp_path, environments=ranks(2), timeout=240):
        assert ended.status == 0, ended.said[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["report"] == second["report"]
    for epoch in ("0", "1"):
        assert len(first["epochs"][epoch]) == len(second["epochs"][epoch]) == len(DATA) // 2
    assert sorted(first["epochs"]["0"] + second["epochs"]["0"]) == list(range(len(DATA)))
    weights = torch.tensor(first["weights"])
    copies = torch.bincount(torch.tensor(first["epochs"]["1"] + second["epochs"]["1"]), minlength=len(DATA))
    # counts of one weighted epoch, rounded; two independent epochs would repeat some bright examples
    assert ((copies - weights * len(DATA) / weights.sum()).abs() < 1).all()
    assert (weights > 1).sum() > 10
