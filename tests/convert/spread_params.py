"""Copies the parameters of one folder to another from arrays that eight devices share."""

import pathlib
import sys

import jax
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from rc3_jax.training.checkpoint import read_params, save_params, stored_shapes


def main(source: str, target: str) -> None:
    mesh = jax.make_mesh((8,), ("fsdp",))
    folder = pathlib.Path(source)

    def spread(x):
        axes = [i for i, n in enumerate(x.shape) if n % 8 == 0][:1]
        spec = PartitionSpec(*("fsdp" if i in axes else None for i in range(x.ndim)))
        return jax.device_put(x, NamedSharding(mesh, spec))

    params = read_params(folder, list(stored_shapes(folder)))
    params = {path: spread(x) for path, x in params.items()}
    print(max(len(x.sharding.device_set) for x in params.values()))
    save_params(pathlib.Path(target), unflatten_dict(params, sep="/"))


if __name__ == "__main__":
    main(*sys.argv[1:])
