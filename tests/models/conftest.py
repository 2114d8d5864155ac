"""The order of tests that share a file of weights."""


def pytest_collection_modifyitems(items: list) -> None:
  """Tests of one fixture follow each other: its weights are made once."""
  first = {}

  def place(numbered):
    number, item = numbered
    params = item.callspec.params if hasattr(item, 'callspec') else {}
    if 'fixture' not in params:
      return number, number
    return first.setdefault((item.path, params['fixture']), number), number

  items[:] = [item for _, item in sorted(enumerate(items), key=place)]
