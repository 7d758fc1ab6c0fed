"""The budget of a validation and the sample that keeps to it, also through a real Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.trainer.embedding_budget import SampleBudget
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, loader, trainer

ROOT = Path(__file__).parents[2]


class SlowEncoder(ColourEncoder):
    """Takes a fixed time for each image."""

    def __init__(self, seconds=0.004):
        super().__init__("slow")
        self.seconds = seconds

    def encode_images(self, images):
        time.sleep(self.seconds * len(images))
        return super().encode_images(images)


# -- the share ------------------------------------------------------------------------------------------------


def converge(cost, budget, epochs=12, n=1000, batch=50, per_batch=0.0):
    """Return the share of each validation, where a new image costs ``cost`` seconds, and the longest time."""
    places = np.random.default_rng(0).random(n)
    known, costs, shares, worst = np.zeros(n, dtype=bool), [], [], 0.0
    for _ in range(epochs):
        sample_budget = SampleBudget(seconds=budget, batches=n // batch, costs=costs)
        for start in range(0, n, batch):
            some = np.arange(start, start + batch)
            line = some[(places[some] < sample_budget.threshold) & ~known[some]]
            line = line[np.argsort(places[line])]
            sample_budget.plan_batch(batch, places[line])
            for portion in sample_budget.portions(places[line]):
                known[line[portion]] = True
                sample_budget.record_cost(len(line[portion]), per_batch + cost * len(line[portion]))
        assert known[places < sample_budget.share].all()  # the sample has no hole
        shares.append(sample_budget.share)
        worst = max(worst, sample_budget.spent)
    return shares, worst


@pytest.mark.parametrize("per_batch", [0.0, 0.2])
def test_sample_budget__grows_from_validation_to_validation_until_all_are_known(per_batch):
    shares, worst = converge(cost=0.1, budget=20.0, per_batch=per_batch)  # 100 to 300 of 1,000 images a time
    assert 0.03 < shares[0] < 0.3
    assert all(later >= earlier for earlier, later in pairwise(shares))
    assert shares[5] > 0.3
    assert shares[-1] == 1.0
    assert worst < 20.0 * 1.6  # 1.5 is tolerated, and a batch is not cut


@pytest.mark.parametrize("batches", [1, 10, 50])
@pytest.mark.parametrize("slower", [1.0, 1.45, 1.6, 2.0, 3.0])
def test_sample_budget__images_that_cost_more_than_was_remembered_leave_no_empty_sample(batches, slower):
    """The remembered costs forecast 0.8 of the time for all images."""
    places = np.random.default_rng(0).random(100 * batches)
    sample_budget = SampleBudget(seconds=1.0, batches=batches, costs=[(100, 0.8 / batches)] * 32)
    embedded = 0
    for batch in places.reshape(batches, 100):
        line = np.sort(batch[batch < sample_budget.threshold])
        sample_budget.plan_batch(100, line)
        for portion in sample_budget.portions(line):
            embedded += len(line[portion])
            sample_budget.record_cost(len(line[portion]), slower * 0.008 / batches * len(line[portion]))
    in_sample = int((places < sample_budget.share).sum())
    assert in_sample > 0.05 * embedded
    assert slower > 1.5 or in_sample == len(places)
    assert sample_budget.spent < max(1.75, 0.8 * slower / batches + 1.75)


def test_sample_budget__everything_at_once_where_there_is_time():
    shares, _ = converge(cost=0.001, budget=20.0, epochs=2)
    assert shares == [1.0, 1.0]


def test_sample_budget__little_where_a_batch_takes_longer_than_all():
    shares, worst = converge(cost=10.0, budget=1.0, epochs=1)
    assert 0.0 < shares[0] < 0.1
    assert worst < 10 * 40  # two probes of the cost of an image, and the images below the least of their ranks


def test_sample_budget__costs_by_the_batch_are_paid_for_a_few_batches_until_all_are_known():
    """The 20 batches cost 20 seconds, however few images are embedded; the budget is ten."""
    shares, worst = converge(cost=0.01, budget=10.0, per_batch=1.0, epochs=12)
    assert shares[0] < 0.1
    assert shares[-1] == 1.0
    assert worst < 20


def test_sample_budget__of_an_unknown_number_of_batches():
    sample_budget = SampleBudget(seconds=1.0, costs=[(10, 0.3)])
    for places in np.random.default_rng(0).random((10, 10)):
        line = np.sort(places[places < sample_budget.share])
        sample_budget.plan_batch(10, line)
        for portion in sample_budget.portions(line):
            sample_budget.record_cost(len(line[portion]), 0.03 * len(line[portion]))
    assert 0 < sample_budget.share < 0.5
    assert sample_budget.spent < 1.6


def test_sample_budget__of_memory():
    sample_budget = SampleBudget(memory=1e6, dim=100, batches=10)
    sample_budget.plan_batch(100, np.empty(0))
    assert sample_budget.share == pytest.approx(1e6 / (4.2 * 4 * 100 * 1000), abs=2e-3)
    before = sample_budget.share
    sample_budget.fit_memory(1000, largest_class=1000)
    assert sample_budget.share < before


# -- in a Trainer ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_time_budget__a_sample_that_grows_and_is_reported(tmp_path):
    """640 images of 4 ms take 2.6 s; a validation may take 2 s, half of it for embedding."""
    encoder, reports = SlowEncoder(), []
    failure_modes = callback(encoder=encoder, time_budget=2, pictures=False, cache_folder=tmp_path / "cache")
    accept = failure_modes._accept
    failure_modes._accept = lambda run, report, index: (reports.append(report), accept(run, report, index))
    trainer(tmp_path, failure_modes, max_epochs=8, num_sanity_val_steps=0).fit(
        OracleClassifier(), loader(32), loader(640)
    )
    sampled = [report.sampled for report in reports]
    assert 0 < sampled[0] < 0.6  # the smaller, the busier the machine
    assert sampled == sorted(sampled)
    assert sampled[-1] == 1.0
    assert encoder.embedded == 640  # each once
    assert any("sample" in note for note in reports[0].notes)
    assert all(note.startswith("Graded as") for note in reports[-1].notes)
    assert {report.examples for report in reports} == {640}
    assert len({report.accuracy for report in reports}) == 1  # of all, always
    assert reports[0].classes[0].examples == 160
    assert not reports[-1].directions.out_of_fold.isnan().any()


@pytest.mark.slow
def test_time_budget__a_share_of_the_epoch(tmp_path):
    """Training takes about a second an epoch; the sanity check and a bare validation know no epoch."""

    class Slow(OracleClassifier):
        def training_step(self, batch, batch_idx):
            time.sleep(0.2)
            return super().training_step(batch, batch_idx)

    encoder = SlowEncoder()
    failure_modes = callback(encoder=encoder, time_budget="100%", pictures=False, cache_folder=tmp_path / "cache")
    run = trainer(tmp_path, failure_modes)
    run.fit(Slow(), loader(80), loader(640))
    assert 0.0 < failure_modes.last_report.sampled < 0.9
    with pytest.warns(UserWarning, match="Outside of fit give seconds"):
        run.validate(Slow(), loader(640), verbose=False)
    assert failure_modes.last_report.sampled == 1.0


def test_time_budget__nothing_left_for_the_fits(tmp_path):
    failure_modes = callback(time_budget=1e-6, cache_folder=tmp_path / "cache")
    trainer(tmp_path, failure_modes).validate(OracleClassifier(), loader(), verbose=False)
    report = failure_modes.last_report
    assert all(entry.cv_score is None and entry.skipped for entry in report.classes)
    assert report.accuracy is not None
    assert report.notes


def test_memory_budget__a_sample_that_fits(tmp_path):
    failure_modes = callback(memory_budget="100 kB", pictures=False, cache_folder=tmp_path / "cache")
    trainer(tmp_path, failure_modes).validate(OracleClassifier(), loader(800), verbose=False)
    assert 0.1 < failure_modes.last_report.sampled < 0.8
    assert failure_modes.last_report.examples == 800


def test_budgets__with_interventions_and_a_sample(tmp_path):
    """Headline numbers cover all examples of the report part, decision values only the sampled ones."""
    failure_modes = callback(
        memory_budget="100 kB", pictures=False, interventions=[Upweight()], cache_folder=tmp_path / "cache"
    )
    run = trainer(tmp_path, failure_modes, max_epochs=2)
    run.fit(OracleClassifier(), loader(64), loader(800))
    part = failure_modes.last_report.parts.report
    assert failure_modes.last_report.sampled < 0.8
    assert 0.1 < float(part.values.isnan().float().mean()) < 0.95
    assert len(part.grades) + failure_modes.last_report.examples == 800
    assert "failures/report/accuracy" in run.callback_metrics


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("time_budget", "soon", "10%"),
        ("time_budget", -1, "seconds"),
        ("memory_budget", "much", "2 GiB"),
        ("memory_budget", 0, "bytes"),
    ],
)
def test_budgets__out_of_range(option, value, allowed):
    with pytest.raises(ConfigurationError, match=f"{option}=.*{allowed}"):
        callback(**{option: value})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_memory_budget__what_is_held_is_about_what_was_allowed(tmp_path):
    """12,000 embeddings of 512 numbers in four classes: an analysis of all takes some 200 MB; it may take 60."""
    script = f"""
        import torch
        from pathlib import Path
        from torch.utils.data import DataLoader
        from tests.helpers.toy import Images, OracleClassifier, callback, trainer
        torch.set_num_threads(1)

        class Wide:
            name, fingerprint, dim = "wide", "tests-wide", 512
            matrix = torch.randn(192, 512, generator=torch.Generator().manual_seed(0))

            def encode_images(self, images):
                return torch.tanh(images.flatten(1) @ self.matrix)

        def peak(size, budget, folder):
            options = dict(pictures=False, permutations=9, memory_budget=budget, cache_folder=folder)
            failure_modes = callback(encoder=Wide(), **options)
            loader = DataLoader(Images(size), batch_size=250)
            trainer(folder, failure_modes).validate(OracleClassifier(), loader, verbose=False)
            (most,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
            return int(most.split()[1]) * 1024, failure_modes.last_report.sampled

        before, _ = peak(2000, None, {str(tmp_path / "small")!r})
        bounded, sampled = peak(12_000, "60 MB", {str(tmp_path / "bounded")!r})
        everything, whole = peak(12_000, None, {str(tmp_path / "everything")!r})
        print(bounded - before, everything - before, sampled, whole)
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    bounded, everything, sampled, whole = map(float, run.stdout.split())
    assert (whole, 0.2 < sampled < 0.6) == (1.0, True)
    assert bounded < 1.3 * 60e6
    assert everything > 1.5 * 60e6


@pytest.mark.slow
def test_reference_of_training_images__is_embedded_once_and_not_on_the_bill(tmp_path):
    """Random transforms give one draw; a budget that their embedding exceeds is still there for the analysis."""

    class Noisy(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + 0.01 * torch.rand(image.shape), label

    encoder = SlowEncoder(0.01)
    failure_modes = callback(
        encoder=encoder,
        reference="train",
        time_budget=2.2,
        pictures=False,
        cache_folder=tmp_path / "cache",
        permutations=9,
    )
    train = DataLoader(Noisy(300), batch_size=50)  # 3 seconds, longer than the budget
    run = trainer(tmp_path, failure_modes, max_epochs=2, num_sanity_val_steps=0)
    run.fit(OracleClassifier(), train, loader(160))
    assert encoder.embedded == 300 + 160
    assert failure_modes.last_report.sampled == 1.0
    assert all(note.startswith("Graded as") for note in failure_modes.last_report.notes)
    assert len(failure_modes.last_report.directions.classes)
