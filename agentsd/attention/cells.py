"""Token grids and their cells: their sizes, and how the number of cells keeps its bounds (no torch here)."""

import math


def number_of_cells(height: int, width: int, stride: int) -> int:
    """Return the number of cells on a grid; cells cut off at the border count.

    Example:
        >>> number_of_cells(9, 5, 4)
        6
    """
    return math.ceil(height / stride) * math.ceil(width / stride)


def whole_cells(height: int, width: int, stride: int) -> int:
    """Return the number of cells that lie whole within a grid.

    Example:
        >>> [whole_cells(side, side, 4) for side in (3, 4, 9)]
        [0, 1, 4]
    """
    return (height // stride) * (width // stride)


def bounded_stride(height: int, width: int, stride: int, least: int | None, most: int | None) -> int:
    """Return the side of cells nearest to `stride` whose number keeps its bounds; `most` wins over `least`.

    Example:
        >>> [bounded_stride(side, side, 8, 64, 256) for side in (16, 32, 64, 192)]
        [2, 4, 8, 12]
    """
    while least is not None and stride > 2 and number_of_cells(height, width, stride) < least:
        stride -= 1
    while most is not None and number_of_cells(height, width, stride) > most:
        stride += 1
    return stride


def grid_at(level: int, height: int, width: int) -> tuple[int, int]:
    """Return the token grid after `level` halvings of a latent; stride-2 convolutions round up.

    Example:
        >>> grid_at(1, 65, 97)
        (33, 49)
    """
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
