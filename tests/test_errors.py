"""Exit codes that the command line promises."""

from __future__ import annotations

import pytest

from entk_app import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("SettingsError", 2), ("StructureError", 2), ("RunFolderError", 2), ("ExportError", 2),
        ("RecordError", 1), ("DataError", 1), ("CampaignFailed", 1), ("Interrupted", 130),
    ],
)  # fmt: skip
def test_an_error_has_its_exit_code(kind, code):
    error = getattr(errors, kind)("a sentence")
    assert isinstance(error, errors.EntkAppError)
    assert error.exit_code == code
