"""Pages as their reader gets them."""

import pytest

from tlkd_jax.report import plots


@pytest.fixture
def laid_out(monkeypatch) -> None:
  """Texts of figures are kept apart, which warns where there is no room."""
  monkeypatch.setitem(plots._STYLE, 'figure.constrained_layout.use', True)
