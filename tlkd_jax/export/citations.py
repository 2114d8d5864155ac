"""Papers of the losses, as docs/methods.md names them, in BibTeX."""

import dataclasses
from collections.abc import Iterable

from tlkd_jax import losses


@dataclasses.dataclass(frozen=True)
class Paper:
  """A paper.

  Attributes:
    authors: family names; '...' stands for more.
    year: of its first version.
    title: in the spelling of the paper.
    place: number on arXiv, else where it was published.
  """

  authors: tuple[str, ...]
  year: int
  title: str
  place: str

  @property
  def key(self) -> str:
    """Of its BibTeX entry, such as hinton2015."""
    return f'{self.authors[0].lower()}{self.year}'

  def bibtex(self) -> str:
    """Its BibTeX entry."""
    names = ['others' if name == '...' else name for name in self.authors]
    arxiv = self.place[:1].isdigit()
    where = f'eprint = {{{self.place}}}, archivePrefix = {{arXiv}}'
    return (
      f'@misc{{{self.key},\n'
      f'  title = {{{{{self.title}}}}},\n'
      f'  author = {{{" and ".join(names)}}},\n'
      f'  year = {{{self.year}}},\n'
      f'  {where if arxiv else f"note = {{{self.place}}}"}\n'
      '}'
    )


_HINTON = Paper(
  ('Hinton', 'Vinyals', 'Dean'),
  2015,
  'Distilling the Knowledge in a Neural Network',
  '1503.02531',
)
_STANDARDISED = Paper(
  ('Sun', '...'),
  2024,
  'Logit Standardization in Knowledge Distillation',
  '2403.01427',
)
_DECOUPLED = Paper(
  ('Zhao', '...'), 2022, 'Decoupled Knowledge Distillation', '2203.08679'
)
_PATIENT = Paper(
  ('Beyer', '...'),
  2022,
  'Knowledge distillation: A good teacher is patient and consistent',
  '2106.05237',
)
_FITNETS = Paper(
  ('Romero', '...'), 2015, 'FitNets: Hints for Thin Deep Nets', '1412.6550'
)

# A loss -> its papers; other names of a loss are left out.
PAPERS: dict[str, tuple[Paper, ...]] = {
  'kd': (_HINTON,),
  'pseudo_label': (
    Paper(
      ('Lee',),
      2013,
      'Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method '
      'for Deep Neural Networks',
      'ICML workshop 2013',
    ),
  ),
  'kd_logit_std': (_STANDARDISED, _HINTON),
  'dkd': (_DECOUPLED,),
  'dkd_logit_std': (_STANDARDISED, _DECOUPLED),
  'dist': (
    Paper(
      ('Huang', '...'),
      2022,
      'Knowledge Distillation from A Stronger Teacher',
      '2205.10536',
    ),
  ),
  'nkd': (
    Paper(
      ('Yang', '...'),
      2023,
      'From Knowledge Distillation to Self-Knowledge Distillation: A Unified '
      'Approach with Normalized Loss and Customized Soft Labels',
      '2303.13005',
    ),
  ),
  'wsld': (
    Paper(
      ('Zhou', '...'),
      2021,
      'Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance '
      'Tradeoff Perspective',
      '2102.00650',
    ),
  ),
  'logit_mse': (
    Paper(
      ('Ba', 'Caruana'),
      2014,
      'Do Deep Nets Really Need to be Deep?',
      '1312.6184',
    ),
  ),
  'mlkd': (
    Paper(('Jin', '...'), 2023, 'Multi-Level Logit Distillation', 'CVPR 2023'),
  ),
  'function_matching': (_PATIENT,),
  'bv_distances': (_PATIENT,),
  'ce_label_smoothing': (
    Paper(
      ('Szegedy', '...'),
      2016,
      'Rethinking the Inception Architecture for Computer Vision',
      '1512.00567',
    ),
  ),
  'fitnet': (_FITNETS,),
  'fitnet_convreg': (_FITNETS,),
  'at': (
    Paper(
      ('Zagoruyko', 'Komodakis'),
      2017,
      'Paying More Attention to Attention: Improving the Performance of '
      'Convolutional Neural Networks via Attention Transfer',
      '1612.03928',
    ),
  ),
  'ft': (
    Paper(
      ('Kim', '...'),
      2018,
      'Paraphrasing Complex Network: Network Compression via Factor Transfer',
      '1802.04977',
    ),
  ),
  'vid': (
    Paper(
      ('Ahn', '...'),
      2019,
      'Variational Information Distillation for Knowledge Transfer',
      '1904.05835',
    ),
  ),
  'mgd': (
    Paper(
      ('Yang', '...'), 2022, 'Masked Generative Distillation', '2205.01529'
    ),
  ),
  'cosine': (
    Paper(
      ('Ranzinger', '...'),
      2024,
      'AM-RADIO: Agglomerative Vision Foundation Model -- Reduce All Domains '
      'Into One',
      '2312.06709',
    ),
  ),
  'smooth_l1': (Paper(('Girshick',), 2015, 'Fast R-CNN', '1504.08083'),),
  'srrl': (
    Paper(
      ('Yang', '...'),
      2021,
      'Knowledge distillation via softmax regression representation learning',
      'ICLR 2021',
    ),
  ),
  'simkd': (
    Paper(
      ('Chen', '...'),
      2022,
      'Knowledge Distillation with the Reused Teacher Classifier',
      '2203.14001',
    ),
  ),
  'srd': (
    Paper(
      ('Miles', '...'),
      2024,
      'Understanding the Role of the Projector in Knowledge Distillation',
      '2303.11098',
    ),
  ),
  'sp': (
    Paper(
      ('Tung', 'Mori'),
      2019,
      'Similarity-Preserving Knowledge Distillation',
      '1907.09682',
    ),
  ),
  'ickd': (
    Paper(
      ('Liu', '...'),
      2021,
      'Exploring Inter-Channel Correlation for Diversity-preserved Knowledge '
      'Distillation',
      '2202.03680',
    ),
  ),
  'nst': (
    Paper(
      ('Huang', 'Wang'),
      2017,
      'Like What You Like: Knowledge Distill via Neuron Selectivity Transfer',
      '1707.01219',
    ),
  ),
  'fsp': (
    Paper(
      ('Yim', '...'),
      2017,
      'A Gift from Knowledge Distillation: Fast Optimization, Network '
      'Minimization and Transfer Learning',
      'CVPR 2017',
    ),
  ),
  'rkd': (
    Paper(
      ('Park', '...'), 2019, 'Relational Knowledge Distillation', '1904.05068'
    ),
  ),
  'pkt': (
    Paper(
      ('Passalis', 'Tefas'),
      2018,
      'Learning Deep Representations with Probabilistic Knowledge Transfer',
      '1803.10837',
    ),
  ),
  'cc': (
    Paper(
      ('Peng', '...'),
      2019,
      'Correlation Congruence for Knowledge Distillation',
      '1904.01802',
    ),
  ),
  'crd': (
    Paper(
      ('Tian', 'Krishnan', 'Isola'),
      2020,
      'Contrastive Representation Distillation',
      '1910.10699',
    ),
  ),
  'ab': (
    Paper(
      ('Heo', '...'),
      2019,
      'Knowledge Transfer via Distillation of Activation Boundaries Formed by '
      'Hidden Neurons',
      '1811.03233',
    ),
  ),
  'ofd': (
    Paper(
      ('Heo', '...'),
      2019,
      'A Comprehensive Overhaul of Feature Distillation',
      '1904.01866',
    ),
  ),
  'reviewkd': (
    Paper(
      ('Chen', '...'),
      2021,
      'Distilling Knowledge via Knowledge Review',
      '2104.09044',
    ),
  ),
  'delta': (
    Paper(
      ('Li', '...'),
      2019,
      'DELTA: DEep Learning Transfer using Feature Map with Attention for '
      'Convolutional Networks',
      '1901.09229',
    ),
  ),
  'l2sp': (
    Paper(
      ('Li', 'Grandvalet', 'Davoine'),
      2018,
      'Explicit Inductive Bias for Transfer Learning with Convolutional '
      'Networks',
      '1802.01483',
    ),
  ),
  'bss': (
    Paper(
      ('Chen', '...'),
      2019,
      'Catastrophic Forgetting Meets Negative Transfer: Batch Spectral '
      'Shrinkage for Safe Transfer Learning',
      'NeurIPS 2019',
    ),
  ),
  'lwf': (
    Paper(('Li', 'Hoiem'), 2016, 'Learning without Forgetting', '1606.09282'),
  ),
  'co_tuning': (
    Paper(
      ('You', '...'), 2020, 'Co-Tuning for Transfer Learning', 'NeurIPS 2020'
    ),
  ),
}


def of(names: Iterable[str]) -> list[Paper]:
  """The papers of losses, each once; none of a loss that has no entry."""
  own = (losses.LOSSES[name].same_as or name for name in names)
  return list(dict.fromkeys(p for name in own for p in PAPERS.get(name, ())))


def of_package(version: str) -> str:
  """The BibTeX entry of the package."""
  return (
    '@software{tlkd_jax,\n'
    '  title = {{tlkd_jax: transfer learning with and without knowledge '
    'distillation, in JAX}},\n'
    f'  version = {{{version}}}\n'
    '}'
  )
