"""Parts of a page that stands alone: HTML and CSS in one file, no script, nothing to fetch. A
`kind` is the name of a colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

# Nothing may be loaded or run, whatever a name in the data holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; --small: #9cc5e8; --medium: #4f93cf; --large: #1f5fa6; --between: #e3a638; --none: #c9534f;
  --line: #dfe4ea; --soft: #5b6773 }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 28px 24px 60px; max-width: 1280px; background: #f5f7f9; color: #1d2630;
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums }
h1 { margin: 0; font-size: 28px } h2 { margin: 0 0 4px; font-size: 18px }
p { margin: 0 0 12px; color: var(--soft) } a { color: inherit }
.where { margin: 4px 0 18px; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere }
section, .tiles div { background: #fff; border: 1px solid var(--line); border-radius: 8px }
section { padding: 18px 20px; margin-top: 16px; min-width: 0 }
.tiles { display: grid; grid-template-columns: repeat(8, 1fr); gap: 12px }
.tiles div { padding: 10px 14px; color: var(--soft) } .tiles b { display: block; color: #1d2630; font-size: 23px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); column-gap: 16px }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 28px }
.pictures { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 16px }
figure { margin: 0; min-width: 0 } figure svg { display: block; width: 100%; aspect-ratio: 4/3; background: #eef1f4; border-radius: 4px }
figcaption { font-size: 13px; color: var(--soft); overflow-wrap: anywhere } figcaption b { color: #1d2630 }
figcaption span { display: inline-block; max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; vertical-align: bottom;
  margin-right: 6px }
figcaption span::before { content: ""; display: inline-block; width: 9px; height: 9px;
  margin-right: 4px; border-radius: 2px; background: var(--c) }
path { fill: none; vector-effect: non-scaling-stroke; stroke: var(--c); stroke-width: 2 } .under { stroke: #fff; stroke-width: 3.6; opacity: .7 }
.crowd { stroke-dasharray: 5 4 }
.c0 { --c: #e6194b } .c1 { --c: #1f6feb } .c2 { --c: #2da44e } .c3 { --c: #f58231 } .c4 { --c: #911eb4 }
.c5 { --c: #008080 } .c6 { --c: #9a6324 } .c7 { --c: #d4a800 } .c8 { --c: #000075 } .c9 { --c: #f032e6 }
i.small { background: var(--small) } i.medium { background: var(--medium) } i.large { background: var(--large) }
i.between { background: var(--between) } i.none { background: var(--none) }
.chart { display: grid; grid-template-columns: auto 1fr; column-gap: 8px; margin: 10px 14px 10px 0 }
.scale { display: flex; flex-direction: column; justify-content: space-between; margin: -8px 0; text-align: right; font-size: 12px;
  color: var(--soft) }
.plot { height: 190px; display: flex; align-items: flex-end; gap: 1px; border-bottom: 1px solid #8a95a1;
  background: linear-gradient(var(--line) 1px, transparent 1px) 0 0 / 100% 50% }
.plot i { flex: 1; min-width: 0; border-radius: 1px 1px 0 0 }
.ticks { grid-column: 2; position: relative; height: 20px; font-size: 12px; color: var(--soft) }
.ticks span { position: absolute; top: 3px; transform: translateX(-50%); white-space: nowrap }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0; font-size: 13px }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 5px; border-radius: 2px }
.rows { margin: 8px 0 } .two { columns: 2 400px; column-gap: 36px }
.rows div { display: grid; grid-template-columns: minmax(0, 11em) 1fr 12.5em; gap: 10px; align-items: center; padding: 2px 0; break-inside: avoid }
.rows b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.rows span { display: block; background: #eef1f4; border-radius: 2px } .rows i { display: block; height: 12px; min-width: 1px; border-radius: 2px }
.rows em { font-style: normal; font-size: 13px; color: var(--soft); text-align: right; white-space: nowrap }
table { border-collapse: collapse; align-self: start }
td, th { padding: 5px 16px 5px 0; text-align: right; font-weight: 500; border-bottom: 1px solid var(--line) }
td + th, th:first-child { text-align: left } thead th { color: var(--soft); font-size: 13px }
details { padding: 4px 0; overflow-wrap: anywhere } summary { cursor: pointer } .list { margin: 8px 0 } .list i { font-style: normal; color: #98a2ad }
ul { margin: 6px 0; padding-left: 22px; color: var(--soft) } .notes { color: inherit } li b { color: #1d2630; font-weight: 500 }
@media (max-width: 1000px) { .tiles { grid-template-columns: repeat(4, 1fr) } .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)) } }
@media (max-width: 560px) { .tiles, .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)) } }
"""


def page(title: str, body: str) -> str:
    """The whole file. `title` and `body` are HTML."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    top = (
        "<head><meta"
        f' charset="utf-8">{policy}{view}<title>{title}</title><style>{STYLE}</style></head>'
    )
    return f'<!DOCTYPE html>\n<html lang="en">{top}<body>{body}</body></html>\n'


def section(title: str, body: str, words: str = "", *, mark: str = "") -> str:
    return f"<section{f' id={mark}' if mark else ''}><h2>{title}</h2>{f'<p>{words}</p>' if words else ''}{body}</section>"


def bullets(items: Iterable[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def bar_row(name: str, share: float, numbers: str, kind: str) -> str:
    """A line with a horizontal bar; `share` of its room, 0 to 1."""
    name = escape(name)
    return (
        f'<div><b title="{name}">{name}</b><span><i class="{kind}"'
        f' style="width:{100 * share:.2f}%"></i></span><em>{numbers}</em></div>'
    )


class Bar(NamedTuple):
    """A bar of a histogram: what it counts, how many, and the name of its colour."""

    what: str
    count: int
    kind: str


def chart(
    bars: Sequence[Bar], ticks: Iterable[tuple[float, str]], keys: Sequence[tuple[str, str]]
) -> str:
    """A histogram. `ticks` are (share of the width, text), those outside 0..1 left out; `keys` are
    (kind, words) beneath it.
    """
    top = round_up(max((bar.count for bar in bars), default=0))
    drawn = "".join(
        f'<i class="{bar.kind}" style="height:{100 * bar.count / top:.2f}%" title="{bar.what}:'
        f' {bar.count:,}"></i>'
        for bar in bars
    )
    below = "".join(
        f'<span style="left:{100 * place:.2f}%">{text}</span>'
        for place, text in ticks
        if -1e-6 <= place <= 1 + 1e-6
    )
    legend = "".join(f'<span><i class="{kind}"></i>{words}</span>' for kind, words in keys)
    scale = f"<span>{top:,}</span><span>{top // 2:,}</span><span>0</span>"
    plot = (
        f'<div class="scale">{scale}</div><div class="plot">{drawn}</div><div'
        f' class="ticks">{below}</div>'
    )
    return f'<div class="chart">{plot}</div><p class="legend">{legend}</p>'


def round_up(count: int) -> int:
    """The next of 2, 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100, 120, ...: its half is a
    whole number.
    """
    if count <= 10:
        return next(top for top in (2, 4, 6, 8, 10) if top >= count)
    step = 10 ** (len(str(count - 1)) - 2)
    return next(
        top * step for top in (12, 16, 20, 24, 30, 40, 50, 60, 80, 100) if top * step >= count
    )


def clip(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
