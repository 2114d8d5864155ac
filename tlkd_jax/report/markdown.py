"""Writes sections as Markdown and as JSON; the figures as their numbers."""

import html
import re
from collections.abc import Sequence
from typing import Any

from tlkd_jax.report.blocks import (
  Figure,
  Gallery,
  Section,
  Table,
  Text,
  show,
  spans,
)
from tlkd_jax.runtime.texts import visible

# What would be markup; an underscore inside a word is none.
_MARKUP = re.compile(r'[\\`*\[\]|~$]|(?<![^\W_])_+|_+(?![^\W_])')
# What would be a list, a heading or a rule at a paragraph's beginning.
_BEGINNING = re.compile(r'^(\s*\d*)([-+#=.)]+)(?=\s|$)')


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Headings, paragraphs and tables; pictures are on the HTML page only."""
  lines = [f'# {escape(title)}', '', _paragraph(subtitle), '']
  for section in sections:
    lines += [f'## {escape(section.title)}', '']
    for block in section.blocks:
      if isinstance(block, Text):
        lines += [_paragraph(block.text), '']
      elif isinstance(block, Table):
        lines += _table(block)
      elif isinstance(block, Figure):
        lines += [f'*{escape(block.title)}: {escape(block.alt)}*', '']
        lines += [_paragraph(block.note), ''] if block.note else []
      else:
        lines += [f'*{escape(block.title)}: see index.html*', '']
  return '\n'.join(lines)


def escape(text: str) -> str:
  """A text as Markdown that reads the same, with nothing in it as markup.

  Nor as HTML, which Markdown lets through to the page.
  """
  text = html.escape(visible(text), quote=False)
  return _MARKUP.sub(lambda found: re.sub('(.)', r'\\\1', found[0]), text)


def row(cells: Sequence[Any]) -> str:
  """A line of a table."""
  return f'| {" | ".join(escape(show(cell)) for cell in cells)} |'


def _paragraph(text: str) -> str:
  """Escapes, and leaves what stands between backticks as code."""
  text = ''.join(
    f'`{visible(part)}`' if is_code else escape(part)
    for part, is_code in spans(text)
  )
  return _BEGINNING.sub(r'\1\\\2', text)


def _table(table: Table) -> list[str]:
  if not table.rows:
    return [f'**{escape(table.title)}**', '', 'Nothing.', '']
  lines = [f'**{escape(table.title)}**', '', row(table.columns)]
  lines.append('| ' + ' | '.join('---' for _ in table.columns) + ' |')
  lines += [row(cells) for cells in table.rows]
  note = f' {_paragraph(table.note)}' if table.note else ''
  return [*lines, '', f'From {escape(table.source)}.{note}', '']


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
