from __future__ import annotations

import pytest

from scripts.bundled_models import train_clip
from scripts.bundled_models.storage import write_json

UNNAMED = train_clip.UNNAMED


def test_write_json__refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"nan": float("nan")})
    assert list(tmp_path.iterdir()) == []
