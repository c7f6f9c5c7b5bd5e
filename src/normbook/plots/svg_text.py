"""One drawing, one text: what an SVG holds of the processor that made it is taken out.

Sums taken in another order differ in their last digit. Matplotlib prints a coordinate
to a millionth of a point, where that digit shows, and makes its ids from unrounded
coordinates, where it changes every character. Here coordinates are rounded and ids are
counted, so that a notebook run elsewhere changes no line of such a figure.
"""

import hashlib
import re

# What says where something lies: the places in which numbers are rounded.
_PLACE = re.compile(r'\s(?:d|x|y|points|width|height)="[^"]*"|translate\([^)]*\)')
_COORDINATE = re.compile(r"-?\d+\.\d{3,}")
# An id as Matplotlib makes it (its kind and ten digits of a hash), and uses of one.
_ID = re.compile(r'(id="|href="#|url\(#)([a-z]*|C[0-9a-f]+_[0-9a-f]+_)([0-9a-f]{10})\b')
_PICTURE = re.compile(r'data:image/png;base64,[^"]*')


def stable(svg: str) -> str:
    """Return the SVG text with rounded coordinates and with ids that are counted.

    Coordinates keep two decimals of a point, a hundredth of a pixel's width on most
    screens. An id keeps its kind and becomes a hash of the drawing without its
    coordinates, so that two figures of a page do not share ids, and its number in the
    order of appearance.
    """
    svg = _PLACE.sub(lambda place: _COORDINATE.sub(_rounded, place[0]), svg)
    drawing = _ID.sub("", _PLACE.sub("", _PICTURE.sub("", svg)))
    salt = hashlib.sha256(drawing.encode()).hexdigest()[:7]
    numbers: dict[str, int] = {}

    def renamed(use: re.Match[str]) -> str:
        number = numbers.setdefault(use[2] + use[3], len(numbers))
        return f"{use[1]}{use[2]}{salt}{number:03x}"

    return _ID.sub(renamed, svg)


def _rounded(coordinate: re.Match[str]) -> str:
    short = f"{float(coordinate[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
