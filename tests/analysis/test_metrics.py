import math
import os
import pickle
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_failures.analysis.metrics import (
    AverageLeafErrorRate,
    FlaggedFraction,
    GradesMetric,
    ValidLeafFraction,
    WorstSliceErrorRate,
)
from lightning_failures.errors import ConfigurationError, DataError

IDS = torch.tensor([5, 1, 3, 1, 8])
LABELS = torch.tensor([0, 1, 2, 1, 0])
PREDICTIONS = torch.tensor([0, 2, 2, 2, 1])
CONFIDENCE = torch.tensor([0.9, 0.25, 0.5, 0.25, 0.125])
LEAVES = torch.tensor([0, 0, 0, 1, 1])
FAILED = torch.tensor([True, True, False, True, False])
WHOLE = {
    GradesMetric: (IDS, LABELS, PREDICTIONS, CONFIDENCE),
    AverageLeafErrorRate: (LEAVES, FAILED),
    WorstSliceErrorRate: (LEAVES, FAILED),
    ValidLeafFraction: (LEAVES, LEAVES, FAILED),
    FlaggedFraction: (torch.tensor([-1.0, 1.0, math.nan, -2.0, 0.5]),),
}


def _equal(a, b):
    a, b = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(a, b, strict=True))


def _computed(kind):
    metric = kind()
    metric.update(*WHOLE[kind])
    return metric.compute()


def test_grades__unique_and_sorted_by_id():
    ids, labels, predictions, confidence = _computed(GradesMetric)
    assert ids.tolist() == [1, 3, 5, 8]
    assert labels.tolist() == [1, 2, 0, 0]
    assert predictions.tolist() == [2, 2, 0, 1]
    assert confidence.tolist() == pytest.approx([0.25, 0.5, 0.9, 0.125])
    assert [t.dtype for t in (ids, labels, predictions, confidence)] == [torch.int64] * 3 + [torch.float32]


def test_grades__the_first_row_of_an_id_counts():
    metric = GradesMetric()
    for prediction in (4, 9):
        metric.update(torch.tensor([2]), torch.tensor([4]), torch.tensor([prediction]), torch.tensor([0.5]))
    ids, _, predictions, _ = metric.compute()
    assert (ids.tolist(), predictions.tolist()) == ([2], [4])
    assert predictions.shape == (1,), "a single row must not become a scalar"


def test_grades__keeps_its_dtypes():
    metric = GradesMetric().half().double().set_dtype(torch.float16)
    metric = torch.nn.ModuleDict({"inside": metric}).to(torch.float16).to("meta")["inside"]
    large = 2**53 + 1
    metric.update(
        torch.tensor([large]), torch.tensor([0]).int(), torch.tensor([1]).byte(), torch.tensor([0.5]).double()
    )
    metric.half()
    ids, labels, predictions, confidence = metric.compute()
    assert ids.item() == large
    assert [t.dtype for t in (ids, labels, predictions, confidence)] == [torch.int64] * 3 + [torch.float32]
    assert ids.device.type == "cpu"


def test_grades__holds_no_graph():
    metric = GradesMetric()
    metric.update(IDS, LABELS, PREDICTIONS, CONFIDENCE.clone().requires_grad_())
    assert not metric.compute()[3].requires_grad


def test_average_leaf_error_rate__by_hand():
    # leaf 0: 2 of 3 fail; leaf 1: 1 of 2 -> 2/3 * 2/3 + 1/2 * 1/3
    assert _computed(AverageLeafErrorRate).item() == pytest.approx(4 / 9 + 1 / 6)
    metric = AverageLeafErrorRate(minus_base=True)
    assert metric(LEAVES, FAILED).item() == pytest.approx(4 / 9 + 1 / 6 - 3 / 5)


def test_worst_slice__needs_evidence():
    metric = WorstSliceErrorRate()
    slices = torch.cat([torch.zeros(1), torch.ones(100), torch.full((50,), -1)]).long()
    failed = torch.cat([torch.ones(1), (torch.arange(100) < 60).float(), torch.ones(50)]).bool()
    assert metric(slices, failed).item() == pytest.approx(0.6)


def test_valid_leaf_fraction__by_hand():
    # group 0: BER 0.3, leaf 0 has ER 0.75 and EC 1: valid; group 1: one leaf only, so ER = BER; group 2 never fails
    groups = torch.tensor([0] * 10 + [1] * 4 + [2] * 3)
    leaves = torch.tensor([0] * 4 + [1] * 6 + [0] * 4 + [0] * 3)
    failed = torch.tensor([1, 1, 1, 0] + [0] * 6 + [1, 1, 0, 0] + [0] * 3).bool()
    assert ValidLeafFraction()(groups, leaves, failed).item() == pytest.approx(0.5)
    assert ValidLeafFraction(delta=0.5)(groups, leaves, failed).item() == 0
    with pytest.raises(ConfigurationError, match="tau"):
        ValidLeafFraction(tau=1.5)


@pytest.mark.parametrize("kind", WHOLE)
def test_every_metric__batches_forward_merge_clone_pickle_and_reset(kind):
    whole = _computed(kind)
    batched, merged, other = kind(), kind(), kind()
    for part in (slice(0, 2), slice(2, 5)):
        batched(*(values[part] for values in WHOLE[kind]))
    assert _equal(batched.compute(), whole)
    merged.update(*(values[:2] for values in WHOLE[kind]))
    other.update(*(values[2:] for values in WHOLE[kind]))
    merged.merge_state(other)
    assert _equal(merged.compute(), whole)
    clone = merged.clone()
    copy = pickle.loads(pickle.dumps(merged))
    merged.reset()
    assert _equal(clone.compute(), whole)
    assert _equal(copy.compute(), whole)
    merged.update(*WHOLE[kind])
    assert _equal(merged.compute(), whole)


@pytest.mark.parametrize("kind", WHOLE)
def test_every_metric__empty_is_undefined_not_an_error(kind):
    metric = kind()
    metric.update(*(values[:0] for values in WHOLE[kind]))
    value = metric.compute()
    assert [len(column) for column in value] == [0] * 4 if kind is GradesMetric else value.isnan()


def test_update__wrong_shapes():
    with pytest.raises(DataError, match="same shape"):
        AverageLeafErrorRate().update(LEAVES, FAILED[:3])
    with pytest.raises(DataError, match="same shape"):
        FlaggedFraction().update(torch.zeros(2, 2))


def _worker(rank, world, port, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
    values = {}
    for kind, columns in WHOLE.items():
        ragged = kind(process_group=group)
        part = slice(0, 3) if rank == 0 else slice(3, 5)
        ragged.update(*(c[part] for c in columns))
        ragged = ragged.clone()
        values[f"{kind.__name__} ragged"] = ragged.compute()
        ragged.reset()
        ragged.update(*(c[part] for c in columns))
        values[f"{kind.__name__} again"] = ragged.compute()
        one_sided = kind(process_group=group)
        if rank == 0:  # the other process sees no batch at all
            one_sided.update(*columns)
        values[f"{kind.__name__} one-sided"] = one_sided.compute()
    torch.save(values, f"{out}/{rank}.pt")
    dist.barrier(group)
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_metric__two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(2, port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(values) == 3 * len(WHOLE)
        for kind in WHOLE:
            for case in ("ragged", "again", "one-sided"):
                assert _equal(values[f"{kind.__name__} {case}"], _computed(kind)), (rank, kind, case)
