"""The page of ``daybreak explain``: one HTML file that needs nothing else, and a small script for its patches.

h w rows and columns of a map, N = h w.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup

from ..errors import Refused
from ..explain.maps import GRAD, Explained, Explanation
from ..explain.neighbours import Neighbours
from ..explain.thumbnails import png
from ..nn.encoder import Encoder
from .html import render, write_page

LARGEST = 10_000_000  # bytes of a page that can still be mailed
# (256, 3) from the least to the most. All differ, so a map can be read back, and their lightness rises, so it serves in grey.
PALETTE = np.ascontiguousarray(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1])


def write_explanation(folder: Path, explanation: Explanation, neighbours: list[Neighbours] | None, *, backbone: Encoder,
                      name: str, info: dict[str, Any], data: str, bank: int) -> Path:
    """Write ``explain.html`` into a folder, which is made if need be, and return its path.

    Args:
        name: of the run. info: what the run says of its backbone.
        data: a sentence on the images. bank: how many images the neighbours were sought among.

    Raises:
        Refused: the page would be larger than 10 MB.
    """
    script = Markup((Path(__file__).parent / "explanation.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = render("explanation", "explanation", script=script, digest=digest, name=name, info=info, data=data, bank=bank,
                  explanation=explanation, images=[draw(image) for image in explanation.images], backbone=backbone,
                  grid=explanation.images[0].colours.shape[:2], neighbours=neighbours, palette=text_of(PALETTE.tobytes()),
                  stops=", ".join("#" + bytes(PALETTE[i]).hex() for i in range(0, 256, 51)))
    size = len(page.encode())
    if size > LARGEST:
        raise Refused(f"--count {len(explanation.images)}: the page would have {size / 1e6:.1f} MB, and up to "
                      f"{LARGEST / 1e6:.0f} MB can be mailed; explain fewer images.")
    folder.mkdir(parents=True, exist_ok=True)
    return write_page(folder / "explain.html", page)


def draw(image: Explained) -> dict[str, Any]:
    """What the template needs of one image: addresses of pictures with what they show in words."""
    rows, columns = image.colours.shape[:2]
    key = image.picture.key

    def tile(name: str, values: np.ndarray) -> dict[str, str]:
        row, column = np.unravel_index(values.argmax(), values.shape)
        name = f"{name}, {image.shown_class}" if name == GRAD else name
        strongest = f"strongest in row {row + 1} of {rows}, column {column + 1} of {columns}"
        where = strongest if np.ptp(values) else "the same everywhere"
        return {"name": name, "url": address(PALETTE[stretch(values)]), "said": f"{name} of {key}: {where}"}

    heads = [] if image.heads is None else [tile(f"Head {i + 1}", head) for i, head in enumerate(image.heads)]
    drawn: dict[str, Any] = {"picture": image.picture, "rows": rows, "columns": columns, "heads": heads, "cosines": None,
                             "maps": [tile(*one) for one in image.maps.items()],
                             "labels": [tile(*one) for one in image.labels.items()], "colours": address(image.colours)}
    if image.cosines is not None:
        row, column = rows // 2, columns // 2
        patch = row * columns + column
        drawn |= {"cosines": text_of(image.cosines[np.triu_indices(rows * columns)].tobytes()), "patch": patch,
                  "row": row, "column": column, "similarity": address(PALETTE[image.cosines[patch].reshape(rows, columns)])}
    return drawn


def stretch(values: np.ndarray) -> np.ndarray:
    """A map (h, w) as uint8 levels from its least value (0 for one that goes below) to its largest."""
    values = values.clip(min=0)
    return np.rint((values - values.min()) / max(float(np.ptp(values)), 1e-12) * 255).astype(np.uint8)


def address(image: np.ndarray) -> str:
    """A data URL of an (h, w, 3) uint8 image that keeps every pixel."""
    return "data:image/png;base64," + text_of(png(image))


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
