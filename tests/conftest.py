"""Every test gets a cache folder of its own, one torch thread, a state of the generator, and offline services."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(20260000)  # the weights of toy models must not depend on which tests ran before
    yield
    torch.set_num_threads(threads)
