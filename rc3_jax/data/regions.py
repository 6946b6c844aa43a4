"""Regions of an image: boxes checked and padded, detector features read from files."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np

from rc3_jax.data.record import BadRecord

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
    boxes: object, width: float, height: float, where: str, tolerance: float = 1.0
) -> np.ndarray:
    """Checks boxes and divides them by the size of their image.

    Args:
      boxes: numbers `[regions, 4]`: x1, y1, x2, y2, in the unit of `width` and `height`.
      tolerance: by how much a box may stand out of the image; what does is cut off.

    Returns:
      float32 `[regions, 4]` in [0, 1].

    Raises:
      BadRecord: not such an array, not finite, outside of the image, or without area.
    """
    pixels = _numbers(boxes, "boxes", where).astype(np.float64)
    if pixels.ndim != 2 or pixels.shape[1] != 4:
        raise BadRecord(where, f"boxes are {list(pixels.shape)}; give 4 numbers for each")
    size = np.array([width, height] * 2, np.float64)
    fractions = (np.clip(pixels, 0, size) / size).astype(np.float32)
    outside = np.any((pixels < -tolerance) | (pixels > size + tolerance), axis=1)
    flat = np.any(fractions[:, 2:] <= fractions[:, :2], axis=1)
    for wrong, problem in ((outside, "lies outside of the image"), (flat, "has no area in it")):
        if wrong.any():
            box = pixels[wrong][0].tolist()
            raise BadRecord(
                where,
                f"box {box} (x1, y1, x2, y2) {problem} ({width} x {height}); correct it, or width "
                "and height if they are not those of the image that the boxes were drawn on",
            )
    return fractions


def load_region_file(
    path: pathlib.Path, where: str, image_size: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the regions of one image from an `.npz` file.

    The file holds `features` `[regions, feature_size]` and `boxes` `[regions, 4]` in pixels
    (x1, y1, x2, y2), and may hold `width` and `height` of the image the boxes belong to.

    Args:
      image_size: width and height, for files that do not hold them.

    Returns:
      Boxes float32 `[regions, 4]` as fractions; features float32 `[regions, feature_size]`.

    Raises:
      BadRecord: missing, damaged, oversized, or not such arrays.
    """
    try:
        arrays = _read_npz(path)
        size = [arrays[name] for name in ("width", "height") if name in arrays] or image_size
        if size is None or len(size) != 2 or not all(np.size(n) == 1 and n > 0 for n in size):
            raise BadRecord("", "give width and height of the image, one positive number each")
        width, height = (np.asarray(number).item() for number in size)
        boxes = boxes_as_fractions(arrays["boxes"], width, height, "")
        features = arrays["features"].astype(np.float32)
        if features.ndim != 2 or len(features) != len(boxes):
            shape = list(features.shape)
            raise BadRecord("", f"features are {shape} for {len(boxes)} boxes; give a row for each")
    except BadRecord as error:
        raise BadRecord(where, f"{path}: {error.problem}") from error
    return boxes, features


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
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise BadRecord(where, f"{name} must hold finite numbers in rows of equal length")
    return array
