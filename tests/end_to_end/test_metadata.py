"""Known attributes of examples, from the dataset to the report, in a real Trainer."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_failures import FailureModes
from lightning_failures.callback import DataOptions
from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.report import write_html
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, loader, trainer


def table(report):
    """Return the enrichment records by (class, attribute, value)."""
    return {(e.name, row.attribute, row.value): row for e in report.classes for row in e.enrichment}


def test_metadata__what_fails_is_enriched_and_told(tmp_path):
    failures = callback(metadata=["dark"], permutations=999, pictures=False)
    logger = TensorBoardLogger(tmp_path, name="run")
    data = Images(400)
    run = trainer(tmp_path, failures, logger=logger)
    run.validate(OracleClassifier(), DataLoader(data, batch_size=50), verbose=False)
    found = table(failures.last_report)
    assert {key[1:] for key in found} == {("dark", "False"), ("dark", "True")}
    for k, name in enumerate(data.classes):
        mine = data.labels == k
        row = found[name, "dark", "True"]
        assert row.examples == int((mine & data.dark).sum())
        assert row.share_of_failures == 1.0
        assert row.flagged + found[name, "dark", "False"].flagged == failures.last_report.classes[k].flagged
        assert row.share_of_flagged_interval[0] > row.share
        worst, best = failures.last_report.classes[k].slices
        assert (worst.class_name, worst.value, worst.significant, best.significant) == (name, "True", True, False)
        assert (worst.examples, worst.failures) == (row.examples, row.failures)
    overall = failures.last_report.slices[0]
    assert (overall.class_name, overall.value, overall.examples) == (None, "True", int(data.dark.sum()))
    assert overall.significant
    written = tmp_path / "run" / "version_0" / "failures"
    assert FailureReport.from_dict(json.loads((written / "report.json").read_text())) == failures.last_report.report
    text = next(written.glob("*/report.md")).read_text()
    assert "Over-represented among the flagged" in text
    assert "| class 0 | dark = True |" in text
    assert "| all classes | dark = True |" in text
    page = write_html(written).read_text()
    assert 'data-of="report/slices/0/gap"' in page
    assert 'data-of="report/classes/0/slices/0/gap_interval/0"' in page


def test_metadata__none_by_default():
    assert FailureModes(encoder=None).metadata == ()


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling")
def test_metadata__through_subset_and_concatenation_in_any_order(tmp_path):
    reports = []
    whole = Images(160)
    for data in (whole, ConcatDataset([Subset(whole, range(80)), Subset(whole, range(80, 160))])):
        failures = callback(metadata=("dark",), pictures=False)
        shuffled = DataLoader(data, batch_size=16, shuffle=True)
        trainer(tmp_path, failures).validate(OracleClassifier(), shuffled, verbose=False)
        reports.append(table(failures.last_report))
    assert reports[0] == reports[1]
    assert len(reports[0]) == 8


def test_metadata__each_loader_its_own(tmp_path):
    failures = callback(metadata=("dark",), pictures=False)
    trainer(tmp_path, failures).validate(OracleClassifier(), [loader(160), loader(80, seed=1)], verbose=False)
    second = json.loads(next(tmp_path.rglob("dataloader_1/report.json")).read_text())
    for report, examples in ((failures.last_report.to_dict(), 160), (second, 80)):
        assert sum(row["examples"] for entry in report["classes"] for row in entry["enrichment"]) == examples


class TwoFindings(Images):
    def __init__(self):
        super().__init__(60)
        self.labels = torch.stack([torch.arange(60) % 2, torch.arange(60) // 30], dim=1)
        self.classes = ["edema", "mass"]
        self.site = ["north", None] * 30

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


class TwoConditions(L.LightningModule):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"logits": torch.where(torch.rand(y.shape) < 0.3, -4.0, 4.0) * (2 * y - 1) + x.mean() * 0}


def test_metadata__multilabel_counts_every_example_once_a_condition(tmp_path):
    failures = callback(encoder=None, metadata=("site",), pictures=False)
    torch.manual_seed(0)
    trainer(tmp_path, failures).validate(TwoConditions(), DataLoader(TwoFindings(), batch_size=20), verbose=False)
    found = table(failures.last_report)
    assert found["edema", "site", "missing"].examples == 30  # every other example
    assert ("edema", "site", "north") not in found
    assert found["mass", "site", "north"].examples == found["mass", "site", "missing"].examples == 15
    assert found["mass", "site", "north"].flagged is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"attribute 'camera' of Images is not there"),
        ([1, 2], r"has 2 values for 160 examples"),
        (torch.rand(160), r"160 distinct fractions"),
        (torch.zeros(160, 2), r"must have shape \(N,\)"),
    ],
)
def test_metadata__says_what_is_wrong_before_the_first_epoch(tmp_path, value, message):
    data = Images(160)
    data.camera = value
    failures = callback(metadata=("camera",), on_error="warn")
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, failures).fit(OracleClassifier(), loader(), DataLoader(data, batch_size=16))


def test_metadata__a_name_alone_is_no_list_of_names():
    with pytest.raises(ConfigurationError, match=r"DataOptions\(metadata=...\) must be a sequence of names"):
        FailureModes(data=DataOptions(metadata="camera"))


def test_metadata__ids_that_are_no_indices(tmp_path):
    failures = callback(
        metadata=("dark",), read_batch=lambda outputs, batch: BatchRecord(ids=batch[1] * 0 + 7 + torch.arange(16))
    )
    with pytest.raises(ConfigurationError, match="metadata cannot be found by them"):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(16), verbose=False)


class Clustered(Images):
    def __init__(self, n):
        super().__init__(n)
        self.cluster = [None if i % 4 == 0 else "odd" if i % 2 else "even" for i in range(n)]


@pytest.mark.slow
def test_groupings__of_values_pairs_and_clusters_get_trees_and_pictures(tmp_path):
    failures = callback(
        robust_encoder=ColourEncoder("robust"),
        metadata=["dark"],
        clusters_from="cluster",
        groupings=["label", "pair", "union", "metadata"],
        pictures=True,
        worst_k=40,
    )
    trainer(tmp_path, failures).validate(OracleClassifier(), DataLoader(Clustered(800), batch_size=50), verbose=False)
    report = failures.last_report
    kinds = {group.grouping for group in report.groups}
    assert kinds == {"label", "pair", "union", "metadata", "cluster"}
    sizes = {group.class_name: group.size for group in report.groups if group.grouping in ("metadata", "cluster")}
    assert sizes.keys() == {"dark = False", "dark = True", "even", "odd"}
    assert (sizes["odd"], sizes["even"], sizes["dark = False"] + sizes["dark = True"]) == (400, 200, 800)
    assert {group.grouping for group in report.groups if group.pattern} >= {"label", "pair", "cluster"}
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "cluster group: examples of this cluster" in page
    gallery = json.loads(next(tmp_path.rglob("gallery.json")).read_text())
    tags = {picture["tag"].rsplit("/", 2)[0] for picture in gallery["pictures"]}
    assert {"leaves/cluster", "leaves/pair", "leaves/label"} <= tags
    assert "cluster groups: mean held-out ALER - BER" in next(tmp_path.rglob("report.md")).read_text()


def test_clusters_from__an_attribute_that_is_not_there(tmp_path):
    failures = callback(robust_encoder=ColourEncoder("robust"), clusters_from="site")
    with pytest.raises(
        ConfigurationError, match=r"DataOptions\(clusters_from=...\): the attribute 'site' .* is not there"
    ):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(80), verbose=False)
