"""Signatures that are read from source files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_failures.cli.signatures import Parameter, methods_in, package_file

SOURCE = '''
class Thing:
    def act(self, first: int, second: "str" = "x", *, third: bool = False, fourth: Path) -> None:
        """Do it.

        More.

        Args:
            first: One.
            third: Three,
                on two lines: here.

        Raises:
            ValueError: No.
        """
def act():
    pass
'''


def test_methods__parameters_and_texts(tmp_path):
    (tmp_path / "thing.py").write_text(SOURCE)
    method = methods_in(tmp_path / "thing.py", "Thing")["act"]
    assert method.text == "Do it.\n\nMore."
    assert method.parameters == (
        Parameter("first", "int", None, "One."),
        Parameter("second", "'str'", "'x'", ""),
        Parameter("third", "bool", "False", "Three, on two lines: here."),
        Parameter("fourth", "Path", None, ""),
    )
    assert methods_in(tmp_path / "thing.py", "")["act"].parameters == ()


def test_package_file__of_a_package_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        package_file("no_such_package", "x.py")
    assert package_file("json", "decoder.py").is_file()
    assert isinstance(package_file("json", "decoder.py"), Path)
