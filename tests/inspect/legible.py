"""Whether a figure can be read: every text is inside, and none lies on another."""

from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts_of(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Draw a figure and return the texts that were drawn."""
    texts: list[Text] = []
    draw = Text.draw

    def draw_and_note(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append(self)
        draw(self, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        FigureCanvasAgg(figure).draw()
    return texts


def assert_legible(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> str:
    """Assert that every text lies within the figure and on no other; return all of it."""
    texts = texts_of(figure, monkeypatch)
    upright = [text for text in texts if text.get_rotation() % 90 == 0]  # of slanted ones the boxes overlap, not the letters
    boxes = [text.get_window_extent().shrunk(0.98, 0.9) for text in upright]
    for n, (text, box) in enumerate(zip(upright, boxes, strict=True)):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
        for other, other_box in zip(upright[:n], boxes[:n], strict=True):
            assert not box.overlaps(other_box), f"{text.get_text()!r} overlaps {other.get_text()!r}"
    assert min(float(text.get_fontsize()) for text in texts) >= 8
    return "\n".join(text.get_text() for text in texts)
