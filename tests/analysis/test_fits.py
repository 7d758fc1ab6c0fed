"""Class centres: the means of phi, the same for any number of processes."""

from __future__ import annotations

import numpy as np
import torch

from lightning_failures.analysis import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows
from lightning_failures.directions import standardize
from tests.analysis.test_analyse import NAMES, planted
from tests.data.test_partition import together


def test_centres__are_the_means_of_phi_by_class():
    grades, x = planted()
    grades = Grades(grades.ids, grades.labels, grades.predictions, grades.confidence, (*NAMES, "never seen"))
    found = analyse(grades, x, permutations=0).directions
    phi = standardize(x.double().numpy(), found.mean.double().numpy(), found.std.double().numpy())
    expected = np.stack([phi[grades.labels.numpy() == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(found.centres[:3], expected, atol=1e-5)
    assert found.centres.shape == (4, x.shape[1])
    assert found.centres[3].isnan().all()


def test_centres__are_the_same_in_all_processes():
    grades, x = planted()
    alone = analyse(grades, x, permutations=0).directions.centres

    def share(workers):
        mine = owned_rows(grades, workers.rank, workers.world_size)
        return analyse(grades, x[torch.from_numpy(mine)], permutations=0, workers=workers).directions.centres

    for centres in together(2, share):
        torch.testing.assert_close(centres, alone, atol=1e-6, rtol=0)
