"""Loads an exported folder with PyTorch and transformers alone: FOLDER IMAGE TARGET."""

import sys


def saved_tensors(folder) -> dict:
    """The tensors that `save_pretrained` wrote."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def main(folder: str, image: str, target: str) -> None:
    for name in ("jax", "jaxlib", "flax", "rc3_jax", "orbax", "torchvision"):
        sys.modules[name] = None  # an import of it raises, and libraries see that it is absent
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text=["a red circle"], images=[Image.open(image)])
    with torch.no_grad():
        np.savez(target, **model(**inputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
