"""A record that is not replaced keeps its digest."""

import pytest

from tlkd_jax.runtime import sealed


def test_a_write_that_fails_leaves_the_digest_of_what_is_there(tmp_path):
  path = tmp_path / 'a.json'
  sealed.write_text(path, '[1]')
  with pytest.raises(ValueError):
    # Half of a surrogate pair has no bytes in UTF-8.
    sealed.write_text(path, '[2] \ud800')
  assert sealed.read_json(path) == [1]
  path.write_text('[7]')
  with pytest.raises(ValueError, match='is damaged'):
    sealed.read_json(path)


def test_what_is_replaced_is_known_by_its_own_digest(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  for text in ('[1]', '[2]'):
    sealed.write_text(path, text)
  assert sealed.read_json(path) == [2]

  def killed(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(sealed, 'seal', killed)
  with pytest.raises(KeyboardInterrupt):
    sealed.write_text(path, '[3]')
  # Nothing is known of it, and no old digest calls it damaged.
  assert sealed.read_json(path) == [3]
