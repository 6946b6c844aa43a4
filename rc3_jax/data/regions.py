"""Regions of an image: boxes checked and padded, detector features read from files."""

from __future__ import annotations

import math
import pathlib
import zipfile

import numpy as np

from rc3_jax.data.image import Frame
from rc3_jax.data.record import BadRecord, Skips

MAX_MEMBER_BYTES = 2**28
"""A larger array in a region file is refused; 100 regions of 2048 features take 0.8 MB."""


def pad_regions(
    boxes: np.ndarray | None,
    features: np.ndarray | None,
    visible: np.ndarray | None,
    count: int,
    feature_size: int,
    where: str = "regions",
) -> dict[str, np.ndarray]:
    """Keeps the first `count` visible regions and fills up with zeros.

    Detectors and annotations list what they are surest of first, so the first are the best.

    Args:
      boxes: `[regions, 4]`, x1, y1, x2, y2 as fractions; None when the image has no regions.
      features: `[regions, feature_size]`; None when there are boxes only.
      visible: bool `[regions]`, such as `augment` returns; None when all are.
      where: the record, for error messages.

    Returns:
      `region_features` float32 `[count, feature_size]`, all zero without features;
      `region_boxes` float32 `[count, 4]`; `region_mask` bool `[count]`, true for regions.

    Raises:
      BadRecord: features do not fit the boxes or `feature_size`.
    """
    boxes = np.zeros((0, 4), np.float32) if boxes is None else boxes
    kept = (np.arange(len(boxes)) if visible is None else np.flatnonzero(visible))[:count]
    padded = {
        "region_features": np.zeros((count, feature_size), np.float32),
        "region_boxes": np.zeros((count, 4), np.float32),
        "region_mask": np.arange(count) < len(kept),
    }
    padded["region_boxes"][: len(kept)] = boxes[kept]
    if features is not None:
        if features.shape != (len(boxes), feature_size):
            raise BadRecord(
                where,
                f"region features are {list(features.shape)} for {len(boxes)} boxes and "
                f"model.roi.feature_size={feature_size}; set that to the detector's, or extract "
                "the features anew",
            )
        padded["region_features"][: len(kept)] = features[kept]
    return padded


def boxes_as_fractions(
    boxes: object, where: str, frame: Frame | None, given: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Checks boxes and divides them by the size of the picture that they were drawn on.

    Args:
      boxes: numbers `[regions, 4]`: x1, y1, x2, y2, in the unit of the size. They may stand out
        of the picture by one pixel (or 1 % where its sides are 1); what does is cut off.
      frame, given: see `upright_fractions`.

    Returns:
      float32 `[regions, 4]` in [0, 1], on the upright image; bool `[regions]`, false for boxes
      without area, which are to be left out.

    Raises:
      BadRecord: not such an array, not finite, outside of the picture, or as `upright_fractions`.
    """
    pixels = _numbers(boxes, "boxes", where).astype(np.float64)
    if pixels.ndim != 2 or pixels.shape[1] != 4:
        raise BadRecord(where, f"boxes are {list(pixels.shape)}; give 4 numbers for each")
    fractions, size = upright_fractions(pixels, where, frame, given)
    outside = _outside(fractions * np.tile(size, 2), size)
    if outside.any():
        raise BadRecord(
            where,
            f"box {pixels[outside][0].tolist()} (x1, y1, x2, y2) lies outside of the image "
            f"({size[0]:g} x {size[1]:g}); correct it, or width and height if they are not those "
            "of the image that the boxes were drawn on",
        )
    fractions = np.clip(fractions, 0, 1).astype(np.float32)
    return fractions, np.all(fractions[:, 2:] > fractions[:, :2], axis=1)


def usable_boxes(
    boxes: object,
    where: str,
    skips: Skips,
    frame: Frame | None,
    given: tuple[float, float] | None = None,
) -> np.ndarray | None:
    """Those of a record's boxes that have an area, see `boxes_as_fractions`; None if none has.

    Raises:
      BadRecord: as `boxes_as_fractions`.
    """
    fractions, kept = boxes_as_fractions(boxes, where, frame, given)
    note_flat(skips, where, kept)
    return fractions[kept] if kept.any() else None


def note_flat(skips: Skips, where: str, kept: np.ndarray) -> None:
    """Counts the boxes of a record that are left out, given which are kept."""
    skips.leave_out(where, "boxes without area", int(np.sum(~kept)))


def upright_fractions(
    pixels: np.ndarray, where: str, frame: Frame | None, given: tuple[float, float] | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Divides boxes by the size of the picture that they were drawn on.

    Boxes drawn on a photograph before it is turned by its EXIF orientation are turned with it. The
    size that comes with them shows that; without one, that all of them lie on the photograph as it
    is stored, and not on the upright one.

    Args:
      pixels: float64 `[regions, 4]`: x1, y1, x2, y2.
      frame: the image's own; None where it is not known, and `given` is.
      given: width and height that come with the boxes, such as (1, 1) for fractions.

    Returns:
      float64 `[regions, 4]` on the upright image, not clipped; its width and height.

    Raises:
      BadRecord: fractions where pixels are due, or width and height exchanged.
    """
    frame = Frame(*(frame or given or (1, 1)))
    upright, lying = (frame.width, frame.height), (frame.height, frame.width)
    is_turned = frame.orientation >= 5
    if given is None:
        is_lying = is_turned and _outside(pixels, upright).any() > _outside(pixels, lying).any()
        given = lying if is_lying else upright
    exchanged = _is_exchanged(given, upright)
    width, height = given
    if exchanged and not is_turned:
        raise BadRecord(
            where,
            f"width and height are {width:g} x {height:g}, and the image is {frame.width:g} x "
            f"{frame.height:g}: they are exchanged; correct them",
        )
    if min(given) > 2 and len(pixels) and -0.01 <= pixels.min() and pixels.max() <= 1.01:
        raise BadRecord(
            where,
            f"box {pixels[0].tolist()} (x1, y1, x2, y2) lies in 0…1, and the image is {width:g} x "
            f"{height:g} pixels; give pixels, or width 1 and height 1 with boxes in fractions",
        )
    fractions = pixels / [width, height, width, height]
    if not exchanged:
        return fractions, given
    x1, y1, x2, y2 = fractions.T
    across = (1 - y2, 1 - y1) if frame.orientation in (6, 7) else (y1, y2)
    down = (1 - x2, 1 - x1) if frame.orientation in (7, 8) else (x1, x2)
    return np.stack([across[0], down[0], across[1], down[1]], axis=1), (height, width)


def _outside(pixels: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Which boxes stand out of a picture, bool `[regions]`."""
    ends = np.tile(size, 2)
    slack = np.where(ends > 2, 1, 0.01)
    return np.any((pixels < -slack) | (pixels > ends + slack), axis=1)


def _is_exchanged(given: tuple[float, float], size: tuple[float, float]) -> bool:
    """Whether a size has the proportions of the other one lying on its side, and not its own."""

    if given == size or given == size[::-1]:
        return given != size

    def alike(width: float, height: float) -> bool:
        rounding = 0.02 + 0.5 / min(*given, *size)
        return abs(math.log(given[0] * height / (given[1] * width))) <= rounding

    return alike(size[1], size[0]) and not alike(*size)


def load_region_file(
    path: pathlib.Path,
    where: str,
    frame: Frame | None = None,
    given: tuple[float, float] | None = None,
    skips: Skips | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the regions of one image from an `.npz` file.

    The file holds `features` `[regions, feature_size]` and `boxes` `[regions, 4]` in pixels
    (x1, y1, x2, y2), and may hold `width` and `height` of the image the boxes belong to. Regions
    without area are left out, and noted in `skips`.

    Args:
      frame, given: see `boxes_as_fractions`; `given` is for files that hold no size.

    Returns:
      Boxes float32 `[regions, 4]` as fractions; features float32 `[regions, feature_size]`.

    Raises:
      BadRecord: missing, damaged, oversized, or not such arrays.
    """
    try:
        arrays = _read_npz(path)
        if stored := [arrays[name] for name in ("width", "height") if name in arrays]:
            sides = [number.item() for number in stored if number.size == 1]
            if len(sides) != 2 or min(sides) <= 0:
                raise BadRecord("", "give width and height of the image, one positive number each")
            given = sides[0], sides[1]
        if given is None and frame is None:
            raise BadRecord("", "give width and height of the image that the boxes belong to")
        boxes, kept = boxes_as_fractions(arrays["boxes"], "", frame, given)
        with np.errstate(over="ignore"):
            features = arrays["features"].astype(np.float32)
        features = _numbers(features, "features, in 32 bits,", "")
        if features.ndim != 2 or len(features) != len(boxes):
            shape = list(features.shape)
            raise BadRecord("", f"features are {shape} for {len(boxes)} boxes; give a row for each")
    except BadRecord as error:
        raise BadRecord(where, f"{path}: {error.problem}") from error
    if skips is not None:
        note_flat(skips, where, kept)
    return boxes[kept], features[kept]


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays that a region file may hold, and checks that they are numbers."""
    try:
        with zipfile.ZipFile(path) as members:
            if any(member.file_size > MAX_MEMBER_BYTES for member in members.infolist()):
                raise ValueError(f"an array takes more than {MAX_MEMBER_BYTES} bytes")
        with np.load(path, allow_pickle=False) as stored:
            names = ("features", "boxes", "width", "height")
            arrays = {name: stored[name] for name in names if name in stored}
            if not {"features", "boxes"} <= arrays.keys():
                raise ValueError(f"it has no features or no boxes, only {sorted(stored)}")
    except FileNotFoundError as error:
        raise BadRecord("", "region file is missing; extract the features anew") from error
    except Exception as error:  # zipfile and NumPy raise many types on damaged files
        raise BadRecord(
            "",
            f"region file cannot be read ({error}); it must be an .npz of plain numbers, as "
            "numpy.savez writes it",
        ) from error
    return {name: _numbers(array, name, "") for name, array in arrays.items()}


def _numbers(values: object, name: str, where: str) -> np.ndarray:
    """Returns an array of finite numbers; texts, booleans and ragged lists are none."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise BadRecord(where, f"{name} must hold finite numbers in rows of equal length")
    return array
