"""Array types that annotations share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""Numbers in double precision."""

IntArray = NDArray[np.int64]
"""Labels, ids, counts or row indices."""

BoolArray = NDArray[np.bool_]
"""One truth value per example."""
