"""Writes sections as Markdown and as JSON; the figures as their numbers."""

from collections.abc import Sequence
from typing import Any

from tlkd_jax.report.blocks import Figure, Gallery, Section, Table, Text, show


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Headings, paragraphs and tables; pictures are on the HTML page only."""
  lines = [f'# {title}', '', subtitle, '']
  for section in sections:
    lines += [f'## {section.title}', '']
    for block in section.blocks:
      if isinstance(block, Text):
        lines += [block.text, '']
      elif isinstance(block, Table):
        lines += _table(block)
      elif isinstance(block, Figure):
        lines += [f'*{block.title}: {block.alt}*', '']
      else:
        lines += [f'*{block.title}: see index.html*', '']
  return '\n'.join(lines)


def _table(table: Table) -> list[str]:
  def row(cells) -> str:
    texts = [show(cell).replace('|', '\\|') for cell in cells]
    return '| ' + ' | '.join(texts) + ' |'

  if not table.rows:
    return [f'**{table.title}**', '', 'Nothing.', '']
  lines = [f'**{table.title}**', '', row(table.columns)]
  lines.append('| ' + ' | '.join('---' for _ in table.columns) + ' |')
  lines += [row(cells) for cells in table.rows]
  note = f' {table.note}' if table.note else ''
  return [*lines, '', f'From {table.source}.{note}', '']


def as_data(sections: Sequence[Section]) -> list[dict[str, Any]]:
  """Every number of the page, for programs."""
  return [
    {
      'key': section.key,
      'title': section.title,
      'texts': [b.text for b in section.blocks if isinstance(b, Text)],
      'tables': [
        {
          'title': table.title,
          'columns': table.columns,
          'rows': table.rows,
          'source': table.source,
        }
        for table in _tables(section)
      ],
      'galleries': [
        {
          'title': block.title,
          'captions': [picture.caption for picture in block.pictures],
          'source': block.source,
        }
        for block in section.blocks
        if isinstance(block, Gallery)
      ],
    }
    for section in sections
  ]


def _tables(section: Section) -> list[Table]:
  found = []
  for block in section.blocks:
    if isinstance(block, Table):
      found.append(block)
    elif isinstance(block, Figure):
      found.append(block.data)
    elif isinstance(block, Gallery) and block.data is not None:
      found.append(block.data)
  return found
