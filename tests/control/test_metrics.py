"""The exposition format, to the letter; what is in it is in test_watching.py."""

from __future__ import annotations

from control.metrics import _lines


def test_values_of_labels() -> None:
    """A capture file's port is called by its path, which may be anything."""
    path = 'a "b"\\c\td\ne'
    text = "".join(_lines({"xdpu_x": ("gauge", "Help.", [({"port": path}, 1)])}))
    assert text == ('# HELP xdpu_x Help.\n# TYPE xdpu_x gauge\n'
                    'xdpu_x{port="a \\"b\\"\\\\c\td\\ne"} 1\n')
