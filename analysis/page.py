"""The look of the report: one HTML file that asks nothing of the network, light or dark, on a
phone or on paper. Here are only the frame, the style and small builders; the words and numbers
come from `analysis.sections`."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#20242b;--soft:#5b626d;
--faint:#8a9099;--line:#e4e1da;--fit:#c2410c;--good:#0f766e;--warn-bg:#fdf3e7;--warn:#8a4b08}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1c1f25;--ink:#e8e6e1;
--soft:#a8aeb8;--faint:#858c97;--line:#2f343d;--fit:#fb8a4f;--good:#5eead4;--warn-bg:#2b2218;
--warn:#f2b872;@DARK@}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;font:16px/1.55 system-ui,
-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:2.2rem 1.1rem 4rem}
.eyebrow{color:var(--soft);font-size:.82rem;letter-spacing:.06em;text-transform:uppercase;margin:0}
h1{font-size:clamp(1.55rem,1.1rem + 2.2vw,2.5rem);line-height:1.18;margin:.35rem 0 1rem;
font-weight:680;letter-spacing:-.015em;text-wrap:balance;max-width:24em}
sup{font-size:.72em;line-height:0}
h2{font-size:1.22rem;margin:2.8rem 0 .8rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:1.3rem 0 .35rem}
p{margin:.5rem 0;max-width:46rem}
.answer{font-size:clamp(1.05rem,1rem + .35vw,1.22rem);line-height:1.5;max-width:44rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.8rem;
margin:1.5rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.85rem 1rem}
.card b{display:block;font-size:1.75rem;line-height:1.2;font-weight:640;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.card span{display:block;color:var(--soft);font-size:.84rem}
.card .tag{color:var(--warn);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem;
align-items:start}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:.9rem .9rem .8rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit!important}
figcaption{font-size:.9rem;color:var(--soft);margin-top:.6rem;line-height:1.45}
figcaption b{color:var(--ink);font-weight:620}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--card)}
.scroll.tall{max-height:32rem;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .75rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:600;position:sticky;top:0;background:var(--card)}
th:first-child,td:first-child{text-align:left}
.words{text-align:left}td.words:last-child{white-space:normal;min-width:16rem}
td.words:not(:last-child){white-space:nowrap}
.warn{background:var(--warn-bg);border-radius:10px;padding:.65rem .95rem;margin:.5rem 0;
font-size:.92rem;max-width:none}
.warn b{color:var(--warn)}
dl{display:grid;grid-template-columns:minmax(9rem,13rem) 1fr;gap:.45rem 1.2rem;font-size:.92rem;
margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0;max-width:42rem;overflow-wrap:anywhere}
@media(max-width:560px){dl{grid-template-columns:1fr;gap:.1rem}dd{margin-bottom:.6rem}
main{padding-top:1.3rem}figure{padding:.6rem}}
.downloads a{display:inline-block;margin:.2rem .6rem .2rem 0;padding:.45rem .95rem;border-radius:9px;
border:1px solid var(--line);background:var(--card);color:var(--good);text-decoration:none;
font-weight:600;font-size:.92rem}
code{font-size:.88em;overflow-wrap:anywhere}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
@media print{body{background:#fff}figure,.card,.scroll{break-inside:avoid}.scroll.tall{max-height:none}}
"""


@dataclass(frozen=True)
class Picture:
    """A figure and what one sees in it; the caption is HTML."""

    name: str
    svg: str
    caption: str


def page(title: str, body: str, dark: Mapping[str, str]) -> str:
    """The whole document. `dark` maps a figure's colours to those on dark paper."""
    overrides = "".join(f"--c{light[1:]}:{other};" for light, other in sorted(dark.items()))
    style = STYLE.replace("@DARK@", overrides)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def safe(text: object) -> str:
    """Text with the characters that mean something to HTML escaped."""
    return html.escape(str(text))


def raised(text: str) -> str:
    """Escaped text with the numbers and letters after ^ set as exponents."""
    return re.sub(r"\^(-?\d+(?:\.\d+)?)", r"<sup>\1</sup>", safe(text))


def figure(picture: Picture, dark: Mapping[str, str]) -> str:
    """A figure with its caption; colours become variables, so that dark paper can change them."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\sxmlns(?::xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{picture.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{picture.name}-", svg)
    svg = re.sub(r'href="#', f'href="#{picture.name}-', svg)
    for light, name in (("#20242b", "ink"), ("#8a9099", "faint"), ("#c2410c", "fit")):
        svg = svg.replace(light, f"var(--{name})")
    for light in dark:
        svg = svg.replace(light, f"var(--c{light[1:]},{light})")
    described = re.sub(r"<[^>]*>", "", picture.caption)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{safe(html.unescape(described))}"', 1)
    return f"<figure>{svg}<figcaption>{picture.caption}</figcaption></figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], tall: bool = False) -> str:
    """A table that scrolls sideways on a phone. Cells are escaped."""
    text = [bool(rows) and str(cell)[:1].isalpha() for cell in (rows[0] if rows else header)]
    kinds = [' class="words"' if each else "" for each in text]
    head = "".join(f"<th{k}>{safe(each)}</th>" for k, each in zip(kinds, header, strict=True))
    lines = []
    for row in rows:
        cells = (f"<td{k}>{safe(each)}</td>" for k, each in zip(kinds, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def card(label: str, value: str, below: str, tag: str = "") -> str:
    """One number at a glance."""
    mark = f'<span class="tag">{safe(tag)}</span>' if tag else ""
    return (
        f'<div class="card"><span>{safe(label)}</span><b>{safe(value)}</b>'
        f"<span>{safe(below)}</span>{mark}</div>"
    )


def warning(text: str) -> str:
    """A warning that begins with its name and a colon."""
    name, _, rest = text.partition(":")
    return f'<p class="warn"><b>{safe(name)}</b>: {safe(rest.strip())}</p>'


def definitions(items: Sequence[tuple[str, str]]) -> str:
    """Terms with their descriptions."""
    return "<dl>" + "".join(f"<dt>{safe(a)}</dt><dd>{safe(b)}</dd>" for a, b in items) + "</dl>"


def download(name: str, kind: str, content: str) -> str:
    """A link that carries its file inside."""
    data = base64.b64encode(content.encode()).decode()
    return f'<a download="{safe(name)}" href="data:{kind};base64,{data}">{safe(name)}</a>'
