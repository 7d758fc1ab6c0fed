"""Batches, example ids and processes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.data.grades import BatchRecord
from lightning_failures.doctor import data
from lightning_failures.doctor.data import check_batches, check_examples, check_processes, graded_once
from lightning_failures.doctor.findings import run_check
from lightning_failures.doctor.images import (
    check_images,
)
from tests.doctor.contexts import Silent, context, only, read
from tests.helpers.toy import Images, OracleClassifier, loader


def test_batches__are_read_as_the_callback_reads_them(tmp_path):
    found = only(check_batches(context(tmp_path)), "ok")
    assert "(16, 3, 8, 8) float32" in found.message
    assert "4 classes (dataset.classes)" in found.message


def test_batches__labels_out_of_range_are_found_wherever_they_are(tmp_path):
    images = Images()
    images.labels[[3, 150]] = 9
    seen = list(check_batches(context(tmp_path, DataLoader(images, batch_size=16), model=Silent())))
    assert "Labels run from 0 to 9" in only(seen, "problem").message
    images.labels[3] = -100
    late = list(check_batches(context(tmp_path, DataLoader(images, batch_size=16), model=Silent())))
    assert "1 of 160 labels are not in 0 ... 3: example 150 has 9" in only(late, "problem").message
    assert [one.message for one in late if "no label" in one.message] == [
        "1 of 160 examples have no label (-100) and are skipped"
    ]


def test_batches__small_classes_are_counted(tmp_path):
    found = list(check_batches(context(tmp_path, loader(60))))
    assert "4 of 4 classes have fewer than 20" in only(found, "warning").message


def test_batches__names_that_do_not_fit(tmp_path):
    found = list(check_batches(context(tmp_path, class_names=["a", "b"])))
    assert "has 2 names" in only(found, "problem").message


def test_batches__a_step_that_fails_is_a_problem_like_any_other(tmp_path):
    class Failing(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            raise KeyError("pixels")

    found = list(run_check("batches", check_batches, context(tmp_path, model=Failing())))
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
    assert "16 examples an id that another example has" in only(check_examples(made), "problem").message


def test_several_loaders__are_distinguished(tmp_path):
    images = Images()
    images.labels[0] = 7

    found = list(check_batches(context(tmp_path, loader(), DataLoader(images, batch_size=16), model=Silent())))
    assert only(found, "problem").message.startswith("loader 1: Labels run from 0 to 7")
    assert only(found, "ok").message.startswith("loader 0:")


@settings(max_examples=40)
@given(st.integers(0, 200), st.integers(1, 9))
def test_graded_once__whatever_the_sampler_repeats(size, processes):
    assert graded_once(size, processes)


def test_graded_once__would_see_what_counts_twice(monkeypatch):
    class Credulous(GradesMetric):
        def compute(self):
            columns = (self.ids, self.labels, self.predictions, self.confidence)
            return tuple(torch.cat(column) for column in columns)

    monkeypatch.setattr(data, "GradesMetric", Credulous)
    assert not graded_once(10, 4)


def test_processes__say_what_is_repeated(tmp_path):
    made = read(tmp_path, loader(150), around={"devices": 4, "strategy": "ddp"})
    found = only(check_processes(made), "ok")
    assert "4 processes (1 node(s)): the sampler repeats 2 of 150 examples" in found.message
    assert only(check_processes(read(tmp_path, loader(150))), "ok").facts["world_size"] == 1
