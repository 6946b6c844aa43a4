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
      BadRecord: boxes, features and visible do not fit one another or `feature_size`.
    """
    boxes = np.zeros((0, 4), np.float32) if boxes is None else boxes
    visible = np.ones(len(boxes), bool) if visible is None else visible
    if visible.shape != (len(boxes),):
        raise BadRecord(f"{where}: visible is {list(visible.shape)} for {len(boxes)} boxes")
    kept = np.flatnonzero(visible)[:count]
    padded = {
        "region_features": np.zeros((count, feature_size), np.float32),
        "region_boxes": np.zeros((count, 4), np.float32),
        "region_mask": np.arange(count) < len(kept),
    }
    padded["region_boxes"][: len(kept)] = boxes[kept]
    if features is not None:
        if features.shape != (len(boxes), feature_size):
            raise BadRecord(
                f"{where}: region features are {list(features.shape)} but {len(boxes)} boxes "
                f"with features of size {feature_size} are expected; set the feature size in "
                "the config to that of the detector, or extract the features anew"
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
        raise BadRecord(f"{where}: boxes are {list(pixels.shape)}; give 4 numbers for each")
    size = np.array([width, height] * 2, np.float64)
    outside = np.any((pixels < -tolerance) | (pixels > size + tolerance), axis=1)
    if outside.any():
        raise BadRecord(
            f"{where}: box {pixels[outside][0].tolist()} (x1, y1, x2, y2) lies outside of the "
            f"image ({width} x {height}); correct the box, or width and height if they are not "
            "those of the original that the boxes were drawn on"
        )
    fractions = (np.clip(pixels, 0, size) / size).astype(np.float32)
    flat = np.any(fractions[:, 2:] <= fractions[:, :2], axis=1)
    if flat.any():
        raise BadRecord(
            f"{where}: box {pixels[flat][0].tolist()} (x1, y1, x2, y2) has no area; correct or "
            "remove it"
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
    where = f"{where}: {path}"
    arrays = _read_npz(path, ("features", "boxes", "width", "height"), where)
    for name in ("features", "boxes"):
        if name not in arrays:
            raise BadRecord(f"{where}: no array {name!r}, only {sorted(arrays)}; add it")
    if {"width", "height"} <= arrays.keys():
        image_size = tuple(_numbers(arrays[name], name, where) for name in ("width", "height"))
        if any(side.size != 1 or side <= 0 for side in image_size):
            raise BadRecord(f"{where}: width and height must be one positive number each")
        image_size = tuple(float(side.reshape(())) for side in image_size)
    if image_size is None:
        raise BadRecord(f"{where}: the image's size is unknown; add arrays width and height")
    boxes = boxes_as_fractions(arrays["boxes"], *image_size, where)
    features = _numbers(arrays["features"], "features", where).astype(np.float32)
    if features.ndim != 2 or len(features) != len(boxes):
        raise BadRecord(
            f"{where}: features are {list(features.shape)} for {len(boxes)} boxes; "
            "give one row for each box"
        )
    return boxes, features


def _read_npz(path: pathlib.Path, names: tuple[str, ...], where: str) -> dict[str, np.ndarray]:
    """Reads those of the named arrays that are there."""
    try:
        with zipfile.ZipFile(path) as members:
            sizes = {member.filename: member.file_size for member in members.infolist()}
        if max(sizes.values(), default=0) > MAX_MEMBER_BYTES:
            raise ValueError(f"an array takes more than {MAX_MEMBER_BYTES} bytes")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names if name in stored}
    except FileNotFoundError as error:
        raise BadRecord(f"{where}: region file is missing; extract the features anew") from error
    except Exception as error:  # zipfile and NumPy raise many types on damaged files
        raise BadRecord(
            f"{where}: region file cannot be read ({error}); it must be an .npz of plain "
            "numbers, as numpy.savez writes it"
        ) from error


def _numbers(values: object, name: str, where: str) -> np.ndarray:
    """Returns an array of finite numbers; texts, booleans and ragged lists are none."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise BadRecord(f"{where}: {name} must hold finite numbers in rows of equal length")
    return array
