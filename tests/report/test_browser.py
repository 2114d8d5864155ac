"""The page in a real browser: no errors, sorting, schemes, a phone's width."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests import strict
from tests.report import synthetic
from tlkd_jax.report import page
from tlkd_jax.runtime.texts import visible

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium here')

# Runs after the page's own script and leaves what it saw in the document.
PROBE = """
<script>
addEventListener('load', function () {
  var seen = {}, root = document.documentElement;
  var tables = Array.from(document.querySelectorAll('table'));
  var table = tables.find(function (t) {
    return t.rows[0].textContent.indexOf('95 % interval') >= 0 &&
      t.rows.length > 20;
  });
  function column(i) {
    return Array.from(table.tBodies[0].rows).map(function (row) {
      var cell = row.cells[i];
      return cell.getAttribute('data-value') || cell.textContent;
    });
  }
  function click(i) { table.rows[0].cells[i].firstChild.click(); }
  seen.names = column(0);
  click(2); seen.up = column(2); click(2); seen.down = column(2);
  click(0); seen.text = column(0);
  function paper() {
    return getComputedStyle(document.body).backgroundColor;
  }
  seen.before = paper();
  document.getElementById('theme').click();
  seen.after = paper();
  seen.wide = root.scrollWidth; seen.window = innerWidth;
  root.setAttribute('data-seen', JSON.stringify(seen));
});
</script>
"""


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp('browser')
  study = synthetic.write_study(folder / 'study', [0.1, 0.2])
  page.write([study], folder / 'report', replicates=20)
  return folder / 'report'


def run_chromium(folder, target, *options):
  return subprocess.run(
    [
      CHROMIUM,
      *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic'),
      *('--no-first-run', '--disable-background-networking'),
      *('--disable-component-update', '--disable-sync'),
      f'--user-data-dir={folder / "profile"}',
      *('--enable-logging=stderr', '--dump-dom', '--allow-file-access'),
      *options,
      target.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_errors_sorting_and_schemes(report, tmp_path):
  probed = tmp_path / 'probed.html'
  probed.write_text((report / 'index.html').read_text() + PROBE)
  done = run_chromium(tmp_path, probed)
  assert ':CONSOLE' not in done.stderr, done.stderr
  seen = re.search(r'data-seen="([^"]*)"', done.stdout)
  assert seen, done.stderr
  seen = json.loads(html.unescape(seen.group(1)))
  numbers = [float(v) for v in seen['up'] if v != '–']
  assert numbers == sorted(numbers) and len(set(numbers)) > 5
  assert numbers[::-1] == [float(v) for v in seen['down'] if v != '–']
  # What was not measured (top-5 of three classes) stays last either way.
  assert seen['up'][-1] == seen['down'][-1] == '–'
  assert seen['text'] == sorted(seen['text'])
  assert sorted(seen['names']) == seen['text'] != seen['names']
  assert seen['before'] != seen['after']


NAMES_PROBE = """
<script>
var alerted = 0;
alert = function () { alerted += 1; };
addEventListener('load', function () {
  var tables = Array.from(document.querySelectorAll('table'));
  var table = tables.find(function (t) {
    return t.parentNode.getAttribute('aria-label') === 'By class';
  });
  var seen = {
    names: Array.from(table.tBodies[0].rows).map(function (row) {
      return row.cells[0].textContent;
    }),
    alerted: alerted,
    scripts: document.scripts.length,
    requests: performance.getEntriesByType('resource').length
  };
  document.documentElement.setAttribute('data-seen', JSON.stringify(seen));
});
</script>
"""


def test_any_name_of_a_class_is_a_text_and_nothing_else(tmp_path):
  for arm in ('tl', 'kd'):
    synthetic.write_run(tmp_path / 'runs' / arm, arm, classes=strict.NAMES)
  page.write([tmp_path / 'runs'], tmp_path / 'report', replicates=20)
  text = (tmp_path / 'report' / 'index.html').read_text(encoding='utf-8')
  probed = tmp_path / 'probed.html'
  probed.write_text(text.replace('<head>', f'<head>{NAMES_PROBE}', 1))
  done = run_chromium(tmp_path, probed)
  assert ':CONSOLE' not in done.stderr, done.stderr
  seen = re.search(r'data-seen="([^"]*)"', done.stdout)
  assert seen, done.stderr
  seen = json.loads(html.unescape(seen.group(1)))
  assert seen['names'] == [visible(name) for name in strict.NAMES]
  # The page's own script and the one of this test.
  assert (seen['alerted'], seen['scripts'], seen['requests']) == (0, 2, 0)


def test_a_phone_needs_no_sideways_scrolling(report, tmp_path):
  """In a frame of 390 pixels, since a window may be no narrower than 500."""
  probed = tmp_path / 'probed.html'
  send = (
    '<script>onload=function(){parent.postMessage(['
    "document.documentElement.scrollWidth,innerWidth],'*')}</script>"
  )
  probed.write_text((report / 'index.html').read_text() + send)
  frame = tmp_path / 'frame.html'
  frame.write_text(
    '<body><script>onmessage=function(e){document.body.dataset.seen='
    "e.data.join(' ')}</script><iframe src='probed.html' width=390 "
    'height=800 style="border:0"></iframe></body>'
  )
  done = run_chromium(tmp_path, frame, '--virtual-time-budget=5000')
  seen = re.search(r'data-seen="(\d+) (\d+)"', done.stdout)
  assert seen, done.stderr
  assert int(seen.group(2)) == 390 and int(seen.group(1)) <= 390
