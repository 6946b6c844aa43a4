"""Published scores that a report shows apart from a run's, in percent.

Baselines: Bugliarello et al., *IGLUE*, ICML 2022, results of its repository. CCLM: Zeng et al.,
*Cross-View Language Modeling*, ACL 2023, Table 1, three seeds. Means are over languages without
English. No score of RC³ is quoted: none was at hand.
"""

from __future__ import annotations

IGLUE_SOURCE = "Bugliarello et al., IGLUE, ICML 2022"
CCLM_SOURCE = "Zeng et al., Cross-View Language Modeling, ACL 2023, Table 1"

COLUMNS = ("xvnli", "xgqa", "marvl", "xflickrco IR@1", "xflickrco TR@1", "wit IR@1", "wit TR@1")
"""Accuracy, or recall at 1."""

ZERO_SHOT = {
    "mUNITER": (53.69, 9.97, 53.72, 8.06, 8.86, 9.16, 10.48),
    "xUNITER": (58.48, 21.72, 54.59, 14.04, 13.51, 8.72, 9.81),
    "UC2": (62.05, 29.35, 57.28, 20.31, 17.89, 7.83, 9.09),
    "M3P": (58.25, 28.17, 56.00, 12.91, 11.90, 8.12, 9.98),
    "CCLM-3M": (74.64, 42.36, 65.91, 67.35, 65.37, 27.46, 28.66),
    "CCLM-4M": (73.32, 46.24, 67.17, 76.56, 73.46, 27.48, 28.75),
}
ENGLISH = {
    "mUNITER": (76.38, 54.68, 71.91, 44.50, 40.90, 19.90, 22.34),
    "xUNITER": (75.77, 54.83, 71.55, 38.45, 32.05, 16.70, 18.54),
    "UC2": (76.38, 55.19, 70.56, 37.40, 34.55, 17.90, 19.71),
    "M3P": (76.89, 53.75, 68.22, 31.35, 24.60, 15.50, 15.33),
}
TRANSLATE_TEST = {
    "mUNITER": (73.09, 49.05, 63.82, 40.95, 36.78, 16.25, 16.64),
    "xUNITER": (72.83, 49.15, 64.04, 36.26, 30.29, 13.01, 14.20),
    "UC2": (73.67, 50.19, 63.09, 36.03, 30.37, 12.70, 14.11),
    "M3P": (73.37, 48.83, 62.52, 27.74, 21.29, 11.53, 13.63),
}
FEW_SHOT = {
    "mUNITER": (53.95, 37.21, 53.41, 8.54, 9.32, None, None),
    "xUNITER": (60.55, 40.68, 57.46, 14.30, 13.54, None, None),
    "UC2": (63.68, 42.95, 58.32, 19.79, 17.59, None, None),
    "M3P": (59.36, 41.04, 49.79, 13.21, 12.26, None, None),
    "CCLM-3M": (75.15, 50.94, 70.53, 66.04, 68.15, None, None),
    "CCLM-4M": (74.19, 55.11, 72.57, 74.74, 75.85, None, None),
}
"""With the most examples, see `FEW_SHOT_SHOTS`."""
FEW_SHOT_SHOTS = {"xvnli": "48", "xgqa": "48", "marvl": "10x2", "xflickrco": "100"}
"""task → the shots of `FEW_SHOT`."""

ZERO_SHOT_LANGUAGES = {
    "UC2": {
        "xvnli": dict(ar=56.19, es=57.47, fr=69.67, ru=64.86),
        "xgqa": dict(bn=19.99, de=42.85, id=28.67, ko=21.36, pt=30.42, ru=31.00, zh=31.16),
        "marvl": dict(id=56.74, sw=52.62, ta=60.47, tr=56.70, zh=59.88),
        "xflickrco IR@1": dict(de=28.60, es=15.95, id=14.60, ja=24.25, ru=20.00, tr=7.15, zh=31.60),
    },
}
"""model → column → language; of the baseline that is best on most tasks."""


def source(model: str) -> str:
    """Where a model's scores were published."""
    return CCLM_SOURCE if model.startswith("CCLM") else IGLUE_SOURCE
