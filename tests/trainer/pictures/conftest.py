"""One analysis for all tests of pictures."""

import pytest

from tests.trainer.pictures.planted import plant


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """An analysis of planted failures: images, bar, encoder, grades, features, store and result."""
    return plant(tmp_path_factory.mktemp("cache"))
