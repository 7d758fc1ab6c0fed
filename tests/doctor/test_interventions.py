"""Interventions that can work through the training loader, and those that cannot."""

from __future__ import annotations

from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2 as T

from lightning_failures.doctor.findings import run_check
from lightning_failures.doctor.interventions import check_interventions
from lightning_failures.interventions import Upweight
from tests.doctor.contexts import only, read, statuses
from tests.helpers.toy import NORMALIZE, Images


def test_interventions__work_or_say_why_not(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    acting = {"interventions": [Upweight()]}
    assert statuses(check_interventions(read(tmp_path))) == ["skipped"]
    assert statuses(check_interventions(read(tmp_path, **acting))) == ["ok"]
    stream = read(tmp_path, train=DataLoader(Stream(), batch_size=4), **acting)
    assert "iterable" in only(run_check("interventions", check_interventions, stream), "problem").message
    flipped = Images()
    flipped.transform = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])
    random_view = read(tmp_path, train=DataLoader(flipped, batch_size=4), **acting)
    assert "train_analysis_dataset" in only(check_interventions(random_view), "warning").remedy
