"""The small exported model that the tests of conversion share."""

import pytest

from tests.convert.exported import Exported, export_tiny, tiny_settings


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """Read-only: tests that change a folder copy it."""
    folder = tmp_path_factory.mktemp("export")
    return export_tiny(folder, tiny_settings(dropout=0.1), licence="apache-2.0")
