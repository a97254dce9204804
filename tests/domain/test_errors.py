"""What a log may hold of an error."""

from __future__ import annotations

from napari_unet.domain.errors import ScanError, traceback_without_messages

NAME = "Doe^Jane"


def test_a_traceback_names_kinds_and_places_but_no_messages() -> None:
    try:
        try:
            raise OSError(f"/scans/{NAME}.dcm")
        except OSError as error:
            raise ScanError(f"{NAME}.dcm cannot be opened.") from error
    except ScanError as error:
        told = traceback_without_messages(error)
    assert NAME not in told
    assert "builtins.OSError" in told
    assert "ScanError" in told
    assert __file__ in told


def test_an_error_that_is_its_own_cause_comes_to_an_end() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert traceback_without_messages(one).count("ValueError") == 2
