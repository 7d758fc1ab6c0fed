import pytest

from lightning_failures import errors
from lightning_failures.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigurationError", ValueError),
        ("DataError", ValueError),
        ("EncoderError", RuntimeError),
        ("CacheError", RuntimeError),
        ("GeneratorError", RuntimeError),
    ],
)
def test_errors__are_caught_as_ours_and_as_pythons(name, builtin):
    error = getattr(errors, name)
    assert issubclass(error, errors.FailureModesError)
    assert issubclass(error, builtin)
    assert str(error("what to do")) == "what to do"


def test_errors__all_are_listed():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined | {"did_you_mean"} == set(errors.__all__)


def test_did_you_mean__closest_first_nothing_if_far():
    assert did_you_mean("acuracy", iter(["coverage", "accuracy"])) == " Did you mean accuracy?"
    assert did_you_mean("RN51", ["RN50", "RN500"]) == " Did you mean RN50 or RN500?"
    assert did_you_mean("zebra", ["accuracy"]) == ""
    assert did_you_mean("zebra", []) == ""
