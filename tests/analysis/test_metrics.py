import pickle

import pytest
import torch

from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.errors import DataError
from tests.processes.gathers import COLUMNS, CONFIDENCE, IDS, LABELS, PREDICTIONS
from tests.processes.launch import fork, ranks


def _equal(a, b):
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(a, b, strict=True))


def _computed():
    metric = GradesMetric()
    metric.update(*COLUMNS)
    return metric.compute()


def test_grades__unique_and_sorted_by_id():
    ids, labels, predictions, confidence = _computed()
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


def test_grades__batches_forward_merge_clone_pickle_and_reset():
    whole = _computed()
    batched, merged, other = GradesMetric(), GradesMetric(), GradesMetric()
    for part in (slice(0, 2), slice(2, 5)):
        batched(*(values[part] for values in COLUMNS))
    assert _equal(batched.compute(), whole)
    merged.update(*(values[:2] for values in COLUMNS))
    other.update(*(values[2:] for values in COLUMNS))
    if hasattr(merged, "merge_state"):  # from torchmetrics 1.6 on
        merged.merge_state(other)
    else:
        merged.update(*(values[2:] for values in COLUMNS))
    assert _equal(merged.compute(), whole)
    clone = merged.clone()
    copy = pickle.loads(pickle.dumps(merged))
    merged.reset()
    assert _equal(clone.compute(), whole)
    assert _equal(copy.compute(), whole)
    merged.update(*COLUMNS)
    assert _equal(merged.compute(), whole)


def test_grades__without_examples_are_empty():
    metric = GradesMetric()
    metric.update(*(values[:0] for values in COLUMNS))
    assert [len(column) for column in metric.compute()] == [0] * 4


def test_margins__are_the_last_column_if_asked_for():
    metric = GradesMetric(with_digests=True, with_margins=True)
    columns = torch.tensor([7, 2]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0.9, 0.2])
    metric.update(*columns, margins=torch.tensor([0.8, -0.6]))
    metric.update(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0.5]))
    margins = metric.compute()[-1]
    assert margins[1:].tolist() == pytest.approx([-0.6, 0.8])
    assert margins[0].isnan()


def test_digests__are_a_fifth_column_if_asked_for():
    metric = GradesMetric(with_digests=True)
    metric.update(*(values[:2] for values in COLUMNS), torch.tensor([70, 80]))
    metric.update(*(values[2:] for values in COLUMNS))
    ids, *_, digests = metric.compute()
    expected = {int(IDS[1]): 80, int(IDS[0]): 70}
    assert dict(zip(ids.tolist(), digests.tolist(), strict=True)) == {i: expected.get(i, -1) for i in ids.tolist()}
    assert digests.dtype == torch.int64


def test_update__rejects_wrong_shapes():
    with pytest.raises(DataError, match="same shape"):
        GradesMetric().update(IDS, LABELS, PREDICTIONS, CONFIDENCE[:3])
    with pytest.raises(DataError, match="same shape"):
        GradesMetric().update(*(torch.zeros(2, 2) for _ in range(4)))


@pytest.mark.slow
def test_grades__two_processes_agree(tmp_path):
    for ended in fork("gathers", tmp_path, environments=ranks(2), timeout=120):
        assert ended.status == 0, ended.said[-3000:]
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(values) == 3
        for case, found in values.items():
            assert _equal(found, _computed()), (rank, case)
