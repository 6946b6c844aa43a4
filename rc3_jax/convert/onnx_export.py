"""ONNX files of an exported model's two encoders, compared with PyTorch."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import numpy as np

from rc3_jax.convert.output import import_extra
from rc3_jax.settings import ConfigError

TOLERANCE = 1e-4
"""Largest difference of an output from PyTorch's."""
FOLDER = "onnx"


def export_onnx(folder: pathlib.Path, seed: int = 0) -> dict[str, float]:
    """Writes `onnx/text_encoder.onnx` and `onnx/image_encoder.onnx` into an exported folder.

    `input_ids` int64 `[batch, length]` give `text_vector`; `pixel_values` float32
    `[batch, 3, size, size]`, with an ROI tower of patches alone, give `image_vector`; both float32
    `[batch, projection_size]`, of any batch and length.

    Returns:
      The largest difference of each file's output from PyTorch's, on random inputs of another
      batch and length than those of the export.

    Raises:
      ConfigError: if a library is missing, or a difference is beyond `TOLERANCE`.
    """
    torch, onnxruntime = import_extra("torch", "onnx"), import_extra("onnxruntime", "onnx")
    for library in ("onnx", "onnxscript"):  # torch.onnx needs them
        import_extra(library, "onnx")
    from rc3_jax.convert.torch_model.modeling_rc3 import RC3Model

    model = RC3Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model.requires_grad_(False)
    rng = np.random.default_rng(seed)
    size, vocab = model.config.model["patch"]["image_size"], model.config.vocab_size
    longest = model.config.model["text"]["max_positions"] - 2

    def texts(rows: int, length: int) -> Any:
        ids = rng.integers(4, vocab - 1, (rows, min(length, longest)))
        ids[0, length // 2 :] = 1
        return torch.from_numpy(ids)

    def images(rows: int) -> Any:
        return torch.from_numpy(rng.normal(size=(rows, 3, size, size)).astype(np.float32))

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=longest)
    cases = {
        "text": (texts(2, 8), texts(5, 13), "input_ids", {0: batch, 1: length}),
        "image": (images(2), images(3), "pixel_values", {0: batch}),
    }
    (folder / FOLDER).mkdir()
    found = {}
    for part, (example, other, given, dynamic) in cases.items():
        name, vector = f"{part}_encoder.onnx", f"{part}_vector"
        encoder = _encoder(torch, model, f"encode_{part}", vector)
        with warnings.catch_warnings(action="ignore"):  # about the exporter's own use of PyTorch
            torch.onnx.export(
                encoder,
                (example,),
                folder / FOLDER / name,
                input_names=[given],
                output_names=[vector],
                dynamic_shapes=(dynamic,),
                dynamo=True,
                external_data=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(
            folder / FOLDER / name, providers=["CPUExecutionProvider"]
        )
        (result,) = session.run([vector], {given: other.numpy()})
        found[name] = float(np.max(np.abs(result - encoder(other).numpy())))
        if not found[name] <= TOLERANCE:
            raise ConfigError(f"{name} differs from PyTorch by {found[name]:.2g}")
    return found


def _encoder(torch: Any, model: Any, method: str, output: str) -> Any:
    """A module of one input and one output."""

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, given):
            return getattr(getattr(self.model, method)(given), output)

    return Encoder()
