"""Cache, time and memory: estimates against budgets and against a real run."""

from __future__ import annotations

import time

import lightning as L
import pytest

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.doctor.costs import Cost, check_cache, check_memory, check_time, estimate
from lightning_failures.doctor.data import check_batches
from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.encoders import check_encoder, check_robust_encoder
from tests.doctor.contexts import only, read, statuses
from tests.helpers.toy import OracleClassifier, callback, loader, trainer


def test_cache__unwritable_known_and_damaged(tmp_path):
    (tmp_path / "file").write_text("")
    broken = read(tmp_path, cache_folder=tmp_path / "file" / "cache")
    assert "cannot be written" in only(check_cache(broken), "warning").message

    made = read(tmp_path, cache_folder=tmp_path / "cache")
    assert "; 0% of the first batch is cached" in only(check_cache(made), "ok").message
    assert not (tmp_path / "cache").exists()
    trainer(tmp_path, callback(cache_folder=tmp_path / "cache")).validate(OracleClassifier(), loader(), verbose=False)
    assert "; 100% of the first batch is cached" in only(check_cache(made), "ok").message
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "; 0% of the first batch is cached; damaged files" in only(check_cache(made), "ok").message


def test_costs__budgets_that_are_too_small(tmp_path):
    made = read(tmp_path)
    assert statuses(check_time(made)) == ["ok", "ok"]
    made.callback.time_budget = 1e-4
    made.callback.memory_budget = 100
    assert "time_budget=0.0001 is less" in only(check_time(made), "warning").message
    assert "memory_budget=100 is less" in only(check_memory(made), "warning").message
    made.callback.time_budget = "10%"
    assert "time_budget=10% is enough for the later ones if an epoch takes" in next(iter(check_time(made))).message


class Stopwatch(L.Callback):
    """Seconds of a validation, from before the callbacks that come after it to the end of all."""

    def on_validation_start(self, trainer, pl_module):
        self.begin = time.perf_counter()

    def on_validation_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.begin


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_time__is_that_of_a_real_validation_within_a_factor_of_3(tmp_path):
    digits = ColouredDigitsDataModule(train_size=300, val_size=400)
    model, options = DigitClassifier(), {"encoder": "embedded:digits", "robust_encoder": "embedded:digits"}
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, datamodule=digits)

    def modes(cache: str) -> FailureModes:
        return callback(**options, captions="digits", permutations=499, pictures=False, cache_folder=tmp_path / cache)

    def measured(cache: str) -> tuple[float, float]:
        """Seconds of a validation, and of its analysis."""
        watch, looking = Stopwatch(), modes(cache)
        trainer(tmp_path, watch, looking).validate(model, datamodule=digits, verbose=False)
        return watch.seconds, looking.last_report.timings["total"]

    def expected(folder: str) -> Cost:
        (tmp_path / folder).mkdir()
        looked_at = CheckContext(
            trainer(tmp_path, modes("no cache")), model, digits, modes("no cache"), tmp_path / folder
        )
        for check in (check_encoder, check_robust_encoder, check_batches):
            assert "problem" not in statuses(check(looked_at))
        return estimate(looked_at)

    costs = [expected("a"), expected("b")]  # the better of two, for the sake of busy machines
    cold = min(measured("one"), measured("two"))
    warm = min(measured("one"), measured("two"))
    later = warm[1]
    first = cold[0] - warm[0] + later
    assert 1 / 3 < min(cost.first for cost in costs) / first < 3
    assert 1 / 3 < min(cost.later for cost in costs) / later < 3
    assert costs[0].examples == 400
