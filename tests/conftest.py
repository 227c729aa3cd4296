"""What tests of several folders stand on."""

import pytest


@pytest.fixture
def drawn_images(monkeypatch):
    """Training, learning and validation on drawn images instead of BSDS500."""
    from tests import child_runs

    for name in ("training_images", "validation_images"):
        monkeypatch.setattr(child_runs.data, name, None)  # put back afterwards
    child_runs.offline()
