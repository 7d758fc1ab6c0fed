"""Which intervention of a checkpoint is which configured one, whatever their order.

Decisions in a checkpoint are stored under names that hold the position of an intervention. After a resume the user may
have put another intervention before it, or exchanged two. So interventions are matched by their kind, their options and
the content of their pools, and by position only where those do not decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.appended import added_index

_PROBES = 5


def match_interventions(
    entries: Mapping[str, Mapping[str, Any]],
    saved: Sequence[str],
    interventions: Mapping[str, Intervention],
) -> dict[str, str]:
    """Return the name of the configured intervention that each saved name stands for; those without one are absent.

    Args:
        entries: Saved name -> entry of the report.
        saved: All saved names.
        interventions: Name -> intervention, as configured now.
    """
    digests = {name: pool_digest(one) for name, one in interventions.items()} if entries else {}

    def is_same(name: str, configured: str) -> bool:
        entry, one = entries.get(name), interventions[configured]
        if entry is None or entry["kind"] != type(one).__name__:
            return False
        known = entry.get("pool_digest")
        if known is not None and known != digests[configured]:
            return False
        options = one.options
        shared = options.keys() & entry["options"].keys()
        return bool(shared) and all(options[key] == entry["options"][key] for key in shared)

    found = {name: name for name in saved if name in interventions and is_same(name, name)}
    for name in saved:
        free = [one for one in interventions if one not in found.values()]
        same = next((one for one in free if is_same(name, one)), None)
        if name not in found and same is not None:
            found[name] = same
    for name in saved:  # options may have been changed
        if name not in found and name in interventions and name not in found.values():
            found[name] = name
    return found


def pool_digest(intervention: Intervention) -> int | None:
    """Return a hash of a few examples of the pool of an intervention; None without a pool that reads alike each time.

    Random transforms are seeded, so that the same pool has the same digest.
    """
    pool = getattr(intervention, "pool", None)
    if pool is None:
        return None
    try:
        first, second = _probe(pool), _probe(pool)
    except Exception:  # a pool that cannot be read is reported where it is needed
        return None
    return first if first == second else None


def _probe(pool: Any) -> int:
    """Return a hash of the first, the last and some other examples of a pool."""
    hasher = xxhash.xxh3_64(str(len(pool)).encode())
    with isolated_rng():
        for row in np.unique(np.linspace(0, len(pool) - 1, _PROBES).astype(np.int64)).tolist():
            seed_all(row)
            _add(hasher, pool[row])
    return hasher.intdigest() >> 1


def plans_under(plans: Mapping[str, Any], names: Mapping[str, str], order: Sequence[str]) -> dict[str, Any]:
    """Return the plans of a checkpoint under the names of today; added examples get the number of their source.

    Args:
        plans: Saved name -> plans, as :meth:`~.sampler.SamplingSchedule.to_dict` returns them.
        names: Saved name -> configured name.
        order: Configured names in their order.
    """
    renamed: dict[str, Any] = {}
    for saved, current in names.items():
        if saved not in plans:
            continue
        source = order.index(current) + 1
        renamed[current] = [
            plan if plan.get("added") is None else plan | {"added": _of_source(plan["added"], source)}
            for plan in plans[saved]
        ]
    return renamed


def folders_of(former: Mapping[str, str], names: Mapping[str, str], order: Sequence[str]) -> dict[str, str]:
    """Return the names of folders that are not those of their interventions, so that each keeps its own files.

    Args:
        former: Saved name -> name of its folder, where they differ.
        names: Saved name -> configured name.
        order: Configured names.
    """
    folders = {current: former.get(saved, saved) for saved, current in names.items()}
    for name in order:
        if name not in folders:
            label, number = name, 2
            while label in folders.values():
                label, number = f"{name} {number}", number + 1
            folders[name] = label
    return {name: label for name, label in folders.items() if label != name}


def _of_source(added: Tensor, source: int) -> Tensor:
    """Return indices (E,) of added examples as those of another source."""
    first = int(added_index(1, np.zeros(1, dtype=np.int64))[0])
    return added % first + source * first


def _add(hasher: Any, item: Any) -> None:
    """Add an example to a hash: tensors, arrays, images, numbers and texts, in mappings and sequences."""
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            _add(hasher, item[key])
    elif isinstance(item, list | tuple):
        for one in item:
            _add(hasher, one)
    elif isinstance(item, str | int | float | bool | None):
        hasher.update(repr(item).encode("utf-8", "surrogatepass"))
    else:
        hasher.update(np.ascontiguousarray(as_array(item)).tobytes())
