"""An SVG picture that reads well on light and dark pages, since it brings its own ground."""

from html import escape

__all__ = ["Canvas", "seen"]

# Ground, ink and the sources of tokens, in the hues of the page at /: by day, and where the reader has chosen dark.
STYLE = """
svg { --ground: #ffffff; --ink: #18202c; --quiet: #556071; --line: #c3cad6; --soft: #eef1f6;
  --heads: #1d46c4; --lookup: #b04a00; --base: #5b6675;
  --heads-soft: #dfe7ff; --lookup-soft: #ffe6d3; --base-soft: #e4e8ee; --plain-soft: #d3d9e3; }
@media (prefers-color-scheme: dark) { svg { --ground: #10141b; --ink: #e6eaf1; --quiet: #a3afc2; --line: #3d485a;
  --soft: #1c2330; --heads: #9db8ff; --lookup: #ffb067; --base: #a3afc2;
  --heads-soft: #22356f; --lookup-soft: #5a3113; --base-soft: #333d4d; --plain-soft: #4a566a; } }
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); }
.say { font-family: system-ui, "DejaVu Sans", sans-serif; } .quiet { fill: var(--quiet); } .small { font-size: 11px; }
.bold { font-weight: 700; }
"""


def seen(token: str) -> str:
    """A token with its spaces and line breaks visible."""
    return token.replace(" ", "\N{MIDDLE DOT}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


class Canvas:
    """A picture of a width and height in pixels, drawn from the back to the front."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self._width, self._height = width, height
        self._parts = [f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>"]
        self._parts.append(f"<style>{STYLE}</style>")
        self.box(0.5, 0.5, width - 1, height - 1, "var(--ground)", "var(--line)", radius=8)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, line: str = "none", radius: float = 4,
        weight: float = 1, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A rectangle with round corners."""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
            f'style="fill:{fill};stroke:{line};stroke-width:{weight:g}"{dashes}/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start", turned: bool = False) -> None:
        """Words on a base line; turned ones read upwards."""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        classes = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{classes}{turn}>{escape(words)}</text>'
        )

    def line(self, points: str, color: str, weight: float = 1.5, dashed: bool = False) -> None:
        """A path, in the words of SVG."""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(f'<path d="{points}" style="fill:none;stroke:{color};stroke-width:{weight:g}"{dashes}/>')

    def svg(self) -> str:
        """The picture."""
        size = f'width="{self._width:g}" height="{self._height:g}" viewBox="0 0 {self._width:g} {self._height:g}"'
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', *self._parts, "</svg>", ""])
