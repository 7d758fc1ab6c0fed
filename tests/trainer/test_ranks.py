"""Communication in one process, and between two real processes over gloo."""

from __future__ import annotations

import multiprocessing
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.ranks import (
    Communicator,
    OtherRankConfigurationError,
    OtherRankError,
    exchange_by_id,
)

# -- one process -------------------------------------------------------------------------------------------------


def test_single_process__every_method_is_the_identity():
    ranks = Communicator()
    ranks.open()  # there is nothing to open
    assert (ranks.rank, ranks.world_size, ranks.is_first, ranks.group) == (0, 1, True, None)
    assert ranks.gather_objects("a") == ["a"]
    assert ranks.gather_results(lambda: "b") == ["b"]
    assert ranks.run_all(lambda: "c") == "c"
    assert ranks.broadcast("d") == "d"
    rows = torch.arange(6).view(3, 2)
    assert ranks.gather_rows(rows) is rows
    ranks.close()


def test_single_process__errors_are_raised_as_they_are():
    ranks, error = Communicator(), ValueError("mine")
    ranks.raise_if_any(None)
    with pytest.raises(ValueError, match="mine"):
        ranks.raise_if_any(error)
    with pytest.raises(ValueError, match="mine"), ranks.synchronized():
        raise error


def test_exchange_by_id__each_id_once_in_the_order_asked_for():
    ids, rows = torch.tensor([7, 3, 7, 5]), torch.tensor([[70.0], [30.0], [71.0], [50.0]])
    ranks = Communicator()
    found = exchange_by_id(ranks, ids, lambda selected: rows[selected], [torch.tensor([3, 7])])
    assert found.tolist() == [[30.0], [70.0]]  # the first of two
    some = exchange_by_id(ranks, ids, lambda selected: rows[selected], [torch.tensor([3, 4])])
    assert some.isnan().tolist() == [[False], [True]]
    assert exchange_by_id(ranks, ids, lambda selected: rows[selected], [torch.tensor([4])]) is None
    assert exchange_by_id(ranks, ids, lambda selected: rows[selected], [ids[:0]]).shape == (0, 1)


# -- two processes -----------------------------------------------------------------------------------------------


def fails_on(rank, ranks, error):
    """Work that raises an error on one rank and returns the rank on the other."""

    def work():
        if ranks.rank == rank:
            raise error
        return ranks.rank

    return work


def caught(work):
    """The name and message of the error that ``work`` raises."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def raises_in_a_block(ranks, rank, error):
    with ranks.synchronized():
        fails_on(rank, ranks, error)()


def values(ranks):
    rows = torch.full((1 + 2 * ranks.rank, 2), float(ranks.rank))
    gathered = ranks.gather_rows(rows, to=1)
    ids = torch.tensor([0, 2, 4]) + ranks.rank
    wanted = [torch.tensor([1, 4]), torch.tensor([0, 3, 5])]
    exchanged = exchange_by_id(ranks, ids, lambda selected: 10.0 * ids[selected, None], wanted)
    missing = exchange_by_id(ranks, ids, lambda selected: 10.0 * ids[selected, None], [torch.tensor([9]), ids])
    return {
        "rank": (ranks.rank, ranks.world_size, ranks.is_first),
        "objects": ranks.gather_objects(ranks.rank),
        "results": ranks.gather_results(lambda: 10 * ranks.rank),
        "broadcast": ranks.broadcast(f"of {ranks.rank}"),
        "rows": None if gathered is None else gathered[:, 0].tolist(),
        "exchanged": exchanged.flatten().tolist(),
        "missing": missing.isnan().flatten().tolist(),
    }


def tensors(ranks):
    """Exchange tensors of all kinds where ``torch.save`` is not what it was."""
    kinds = {
        "float": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "bool": torch.tensor(True),
        "empty": torch.empty(0, 2, dtype=torch.int64),
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        save = torch.save
        patch.setattr(torch, "save", lambda *args, **kwargs: (saved.append(args[0]), save(*args, **kwargs)))
        same = []
        for name, sent in kinds.items():
            same.append(ranks.gather_objects({name: sent}))
            same.append([{name: ranks.broadcast(sent)}])
    for found in same:
        for one in found:
            ((name, received),) = one.items()
            sent = kinds[name]
            assert (type(received), received.dtype, received.shape) == (type(sent), sent.dtype, sent.shape)
            assert torch.equal(received, sent)
            received.zero_() if not received.requires_grad else None  # it can be written
    return len(saved)


def errors(ranks):
    found = {
        "run_all": caught(lambda: ranks.run_all(fails_on(1, ranks, ValueError("lost")))),
        "gather_results": caught(lambda: ranks.gather_results(fails_on(0, ranks, ConfigurationError("wrong")))),
        "raise_if_any": caught(lambda: ranks.raise_if_any(KeyError("key") if ranks.is_first else None)),
        "block": caught(lambda: raises_in_a_block(ranks, 1, ValueError("inside"))),
        "after the block": caught(lambda: ranks.run_all(lambda: None)),
    }

    def reports_once():
        with ranks.synchronized():
            ranks.run_all(fails_on(1, ranks, ValueError("once")))

    found["reported once"] = caught(reports_once)
    found["in step"] = ranks.gather_objects("in step")
    return found


def process(rank, store, queue):
    """Run the cases on one of two ranks and put what they return into a queue."""
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
        )
        ranks = Communicator()
        ranks.open()
        ranks.open()
        queue.put((rank, {"values": values(ranks), "errors": errors(ranks), "saved": tensors(ranks)}))
        ranks.close()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, traceback.format_exc()))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    context = multiprocessing.get_context("spawn")
    queue, store = context.Queue(), tmp_path_factory.mktemp("store") / "store"
    processes = [context.Process(target=process, args=(rank, store, queue)) for rank in range(2)]
    for one in processes:
        one.start()
    found = dict(queue.get(timeout=240) for _ in processes)
    for one in processes:
        one.join(timeout=60)
    assert not any(isinstance(result, str) for result in found.values()), found
    return found


@pytest.mark.slow
def test_two_processes__values(two_ranks):
    first, second = two_ranks[0]["values"], two_ranks[1]["values"]
    assert (first["rank"], second["rank"]) == ((0, 2, True), (1, 2, False))
    assert first["objects"] == second["objects"] == [0, 1]
    assert first["results"] == second["results"] == [0, 10]
    assert first["broadcast"] == second["broadcast"] == "of 0"
    assert (first["rows"], second["rows"]) == (None, [0.0, 1.0, 1.0, 1.0])
    assert (first["exchanged"], second["exchanged"]) == ([10.0, 40.0], [0.0, 30.0, 50.0])
    assert (first["missing"], second["missing"]) == ([True], [False] * 3)  # rank 1 has all of its rows, but not rank 0


@pytest.mark.slow
def test_two_processes__tensors_are_exchanged_without_torch_save(two_ranks):
    # as arrays, all but that of bfloat16, which NumPy lacks: gathered from both ranks, broadcast from the first
    assert [two_ranks[rank]["saved"] for rank in range(2)] == [2, 1]


@pytest.mark.slow
def test_two_processes__an_error_on_one_is_raised_on_both_and_once(two_ranks):
    first, second = two_ranks[0]["errors"], two_ranks[1]["errors"]
    other, configuration = OtherRankError.__name__, OtherRankConfigurationError.__name__
    assert (first["run_all"], second["run_all"]) == (f"{other}: process 1: ValueError: lost", "ValueError: lost")
    assert first["gather_results"] == "ConfigurationError: wrong"
    assert second["gather_results"] == f"{configuration}: process 0: ConfigurationError: wrong"
    assert second["raise_if_any"] == f"{other}: process 0: KeyError: 'key'"
    assert (first["block"], second["block"]) == (f"{other}: process 1: ValueError: inside", "ValueError: inside")
    assert first["after the block"] == second["after the block"] == "no error"
    assert first["reported once"] == f"{other}: process 1: ValueError: once"
    assert first["in step"] == second["in step"] == ["in step", "in step"]
