"""Writes sections as one self-contained HTML page."""

import base64
import html
import math
from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer.decision import Decided
from tlkd_jax.answer.verdicts import Verdict
from tlkd_jax.report import assets
from tlkd_jax.report.blocks import (
  Block,
  Figure,
  Gallery,
  Section,
  Table,
  Text,
  show,
  spans,
)
from tlkd_jax.runtime.texts import visible

# Verdict -> class in the style sheet.
_VERDICTS: dict[Verdict | Decided, str] = {
  'better': 'better',
  'worse': 'worse',
  'helps': 'better',
  'hurts': 'worse',
}
# Cells of text longer than this may be broken over lines.
_LONG = 28


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """The whole page; no reference to anything outside of it."""
  links = ''.join(
    f'<a href="#{section.key}">{_text(section.title)}</a>'
    for section in sections
  )
  body = ''.join(map(_section, sections))
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{_text(title)}</title><link rel="icon" href="data:,">'
    f'<style>{assets.STYLE}</style></head><body><header>'
    f'<h1>{_text(title)}</h1><p class="soft">{_text(subtitle)}</p>'
    '<button id="theme" type="button" aria-label="Change the colour scheme">'
    f'Dark</button><nav aria-label="Sections">{links}</nav></header>'
    f'<main>{body}</main><footer class="soft">Made by tlkd_jax.report from '
    'stored predictions; paths are relative to this page.</footer>'
    f'<script>{assets.SCRIPT}</script></body></html>\n'
  )


def _text(text: str) -> str:
  return html.escape(visible(str(text)))


def _section(section: Section) -> str:
  blocks = ''.join(map(_block, section.blocks))
  return (
    f'<section id="{section.key}"><h2>{_text(section.title)}</h2>{blocks}'
    '</section>\n'
  )


def _block(block: Block) -> str:
  if isinstance(block, Text):
    kind = '' if block.kind == 'p' else f' class="{block.kind}"'
    return f'<p{kind}>{_with_code(block.text)}</p>'
  if isinstance(block, Table):
    return f'<h3>{_text(block.title)}</h3>' + _table(block)
  if isinstance(block, Figure):
    return _figure(block)
  return _gallery(block)


def _with_code(text: str) -> str:
  """Escapes, and sets what stands between backticks as code."""
  return ''.join(
    f'<code>{_text(part)}</code>' if is_code else _text(part)
    for part, is_code in spans(text)
  )


def _table(table: Table) -> str:
  if not table.rows:
    return '<p class="soft">Nothing.</p>'
  heads = []
  for i, column in enumerate(table.columns):
    kind = ' class="text"' if _is_text(table, i) else ''
    heads.append(
      f'<th scope="col"{kind}><button type="button">{_text(column)}</button>'
      '</th>'
    )
  rows = ''.join(
    '<tr>'
    + ''.join(
      _cell(c, _is_text(table, i), _is_change(table.columns[i]))
      for i, c in enumerate(row)
    )
    + '</tr>'
    for row in table.rows
  )
  note = f'<p class="soft">{_with_code(table.note)}</p>' if table.note else ''
  return (
    f'<div class="scroll" tabindex="0" role="region" '
    f'aria-label="{_text(table.title)}"><table><thead><tr>{"".join(heads)}'
    f'</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    f'<p class="source">From {_text(table.source)}</p>'
  )


def _is_text(table: Table, column: int) -> bool:
  cells = [row[column] for row in table.rows if row[column] is not None]
  return bool(cells) and all(isinstance(cell, str) for cell in cells)


def _is_change(column: str) -> bool:
  """Whether a column holds differences, whose sign is always shown."""
  words = ('difference', 'minus', 'gap', 'slope', 'Δ')
  return any(word in column for word in words)


def _cell(value, text_column: bool, signed: bool) -> str:
  if isinstance(value, str):
    kinds = [kind for word, kind in _VERDICTS.items() if value == word]
    kinds += ['text'] if text_column else []
    kinds += ['wrap'] if len(value) > _LONG else []
    kind = f' class="{" ".join(kinds)}"' if kinds else ''
    return f'<td{kind}>{_text(value)}</td>'
  if isinstance(value, np.generic):
    value = value.item()
  undefined = value is None or (isinstance(value, float) and math.isnan(value))
  number = '' if undefined else f'{float(value):.10g}'
  # As JavaScript writes it.
  number = number.replace('inf', 'Infinity')
  kind = ' class="text"' if undefined and text_column else ''
  return f'<td{kind} data-value="{number}">{show(value, signed)}</td>'


def _figure(figure: Figure) -> str:
  panels = ''.join(figure.panels)
  kind = 'panels narrow' if figure.narrow else 'panels'
  legend = ''.join(
    f'<span><svg viewBox="0 0 34 10" aria-hidden="true"><line x1="1" y1="5" '
    f'x2="33" y2="5" stroke="{colour}" stroke-width="3" '
    f'stroke-dasharray="{dash}"/></svg>{_text(label)}</span>'
    for label, colour, dash in figure.legend
  )
  legend = f'<div class="legend">{legend}</div>' if legend else ''
  note = f' {_with_code(figure.note)}' if figure.note else ''
  return (
    f'<h3>{_text(figure.title)}</h3><figure role="group" '
    f'aria-label="{_text(figure.alt)}">{legend}<div class="{kind}">{panels}'
    f'</div><figcaption>{_with_code(figure.alt)}{note}</figcaption></figure>'
    + _details(figure.data)
  )


def _details(table: Table) -> str:
  return (
    f'<details><summary>The data behind it</summary>{_table(table)}</details>'
  )


def _gallery(gallery: Gallery) -> str:
  cards = []
  for picture in gallery.pictures:
    images = ''.join(
      f'<figure><img loading="lazy" src="{_data_uri(data)}" '
      f'alt="{_text(label + ": " + picture.caption)}">'
      + (f'<figcaption>{_text(label)}</figcaption>' if label else '')
      + '</figure>'
      for data, label in picture.images
    )
    cards.append(
      f'<div class="card"><div class="row">{images}</div>'
      f'{_text(picture.caption)}</div>'
    )
  wide = any(len(picture.images) > 1 for picture in gallery.pictures)
  note = f'<p class="soft">{_with_code(gallery.note)}</p>'
  return (
    f'<h3>{_text(gallery.title)}</h3>{note if gallery.note else ""}'
    f'<div class="gallery{" wide" if wide else ""}">{"".join(cards)}</div>'
    f'<p class="source">From {_text(gallery.source)}</p>'
    + (_details(gallery.data) if gallery.data else '')
  )


def _data_uri(data: bytes) -> str:
  kind = 'png' if data.startswith(b'\x89PNG') else 'jpeg'
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
