"""What the drawings are made of. Colours are classes, which site.css gives each theme."""

from __future__ import annotations

from html import escape

#: Drawings are as wide as this, so that a narrow screen shows them with readable letters.
WIDTH = 480


class Drawing:
    """Shapes from the top down; `height` is fixed at the end."""

    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._description = description
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, kind: str = "paper", radius: int = 4
    ) -> None:
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            f' rx="{radius}"/>'
        )

    def text(
        self, x: float, y: float, words: str, kind: str = "", anchor: str = "start"
    ) -> None:
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def label(
        self, x: float, y: float, width: float, height: float, kind: str, *lines: str
    ) -> None:
        """A box with lines in its middle; the first is the heaviest."""
        self.box(x, y, width, height, kind)
        first = y + height / 2 + 4.5 - (len(lines) - 1) * 8.5
        for index, line in enumerate(lines):
            weight = "strong" if index == 0 else "small"
            self.text(x + width / 2, first + index * 17, line, weight, "middle")

    def line(self, *points: tuple[float, float], kind: str = "line", arrow: bool = False) -> None:
        path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        end = f' marker-end="url(#{self._name}-end)"' if arrow else ""
        self._parts.append(f'<path class="{kind}" d="{path}"{end}/>')

    def html(self, height: float, caption: str) -> str:
        marker = (
            f'<defs><marker id="{self._name}-end" viewBox="0 0 10 10" refX="9" refY="5"'
            ' markerWidth="7" markerHeight="7" orient="auto"><path class="tip" d="M0 0 L10 5 L0 10'
            ' z"/></marker></defs>'
        )
        return (
            f'<figure class="drawing" id="picture-{self._name}">'
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img"'
            f' aria-label="{escape(self._description)}">{marker}{"".join(self._parts)}</svg>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
