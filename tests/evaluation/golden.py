"""Stored predictions, and what other libraries say of them."""

import json
import pathlib

import numpy as np

_FOLDER = pathlib.Path(__file__).parent.parent / 'fixtures' / 'evaluation'
GOLDEN = json.loads((_FOLDER / 'metrics.json').read_text())
ARRAYS = dict(np.load(_FOLDER / 'metrics.npz'))
# Predictions of arms on the same examples: set_nEXAMPLES_cCLASSES.
SETS = (
  'overconf_n500_c10',
  'imbal_n300_c3',
  'chance_n1000_c100',
  'edge_n40_c4',
)
# Every (set, arm) of which there are values.
ARMS = [(s, arm) for s in SETS for arm in ('tl', 'kd') if arm in GOLDEN[s]]
