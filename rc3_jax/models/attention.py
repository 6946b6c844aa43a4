"""What computes attention: XLA, cuDNN's fused kernel, or the fused kernel of TPUs, splash attention.

The fused kernels never store the products of queries and keys. They take lengths of certain
multiples only: tokens are padded, masked and cut off again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from rc3_jax.parallel.mesh import BATCH_AXES, batch_devices
from rc3_jax.settings import ConfigError

Implementation = Literal["auto", "xla", "cudnn", "splash"]
BLOCKS = (512, 384, 256, 128)
"""Tokens that the splash kernel takes at a time; it needs multiples of 128."""


@dataclasses.dataclass(frozen=True)
class Attend:
    """Scaled dot-product attention with a softmax in float32.

    Attributes:
      name: `xla`, `cudnn` or `splash`.
      mesh: the devices that share rows and heads.
    """

    name: str = "xla"
    mesh: Mesh | None = None

    @classmethod
    def of(cls, setting: Implementation, dtype: DTypeLike, mesh: Mesh | None) -> Self:
        """What `model.attention` stands for on the devices of a mesh; XLA's without a mesh.

        `auto` is XLA's: the others have not been run yet, see docs/performance.md.

        Raises:
          ConfigError: for an implementation that the devices do not have, or not for the dtype.
        """
        if mesh is None or setting in ("auto", "xla"):
            return cls()
        device = mesh.devices.flat[0]
        if reason := _no_cudnn(device, dtype) if setting == "cudnn" else _no_splash(device):
            raise _unavailable(setting, reason)
        return cls(setting, mesh)

    def __call__(
        self,
        query: Float[Array, "batch q heads size"],
        key: Float[Array, "batch k heads size"],
        value: Float[Array, "batch k heads size"],
        key_mask: Bool[Array, "rows k"] | None = None,
        bias: Float[Array, "rows heads q k"] | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "batch q heads size"]:
        """The mean of the values that each query reads, weighted by the softmax.

        Args:
          key_mask: the keys that are read, of one row for all or of each. What rows that read none
            get has no meaning, and differs between implementations.
          bias: added to the scaled products, of one row for all or of each.
          is_causal: each query reads the keys up to its own place only.

        Raises:
          ConfigError: for arguments that the implementation cannot take.
        """
        arguments = query, key, value, key_mask, bias, is_causal
        if self.name == "cudnn":
            if reason := _no_cudnn_arguments(query, bias, self.mesh):
                raise _unavailable(self.name, reason)
            return padded(_cudnn, 2, *arguments)
        if self.name == "splash":
            if bias is not None:
                reason = "it adds no relative positions, which this visual tower has"
                raise _unavailable(self.name, reason)
            if len(query) >= _rows_shared(self.mesh):  # fewer rows only initialize parameters
                return padded(functools.partial(splash, mesh=self.mesh), 128, *arguments)
        return _xla(*arguments)


XLA = Attend()
"""On all devices."""


def padded(function: Any, multiple: int, query, key, value, key_mask, bias, is_causal) -> Array:
    """`function` of tokens padded to a multiple, with a mask that leaves added keys out.

    Args:
      function: takes what `Attend` takes; the other arguments are described there.
    """
    length, keys = query.shape[1], key.shape[1]
    more, more_keys = -length % multiple, -keys % multiple
    if more_keys and key_mask is None:
        key_mask = jnp.ones((1, keys), bool)
    if key_mask is not None:
        key_mask = jnp.pad(key_mask, ((0, 0), (0, more_keys)))
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, more), (0, more_keys)))

    def pad(x, count):
        return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))

    query, key, value = pad(query, more), pad(key, more_keys), pad(value, more_keys)
    return function(query, key, value, key_mask, bias, is_causal)[:, :length]


def _xla(query, key, value, key_mask, bias, is_causal):
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, bias, mask, is_causal=is_causal)


def _cudnn(query, key, value, key_mask, bias, is_causal):
    """cuDNN takes a mask as a bias of all queries, in the type of computation.

    Its gradient takes odd lengths in no case, though without mask and bias the result does.
    """
    mask = None
    if key_mask is not None:
        shape = (len(key_mask), 1, query.shape[1], key.shape[1])
        mask = jnp.broadcast_to(key_mask[:, None, None, :], shape)
    bias = None if bias is None else bias.astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, is_causal=is_causal, implementation="cudnn"
    )


def splash(
    query, key, value, key_mask, bias, is_causal, mesh: Mesh | None = None, interpret: bool = False
) -> Float[Array, "batch q heads size"]:
    """Splash attention of lengths that are multiples of 128; each device takes its rows and heads.

    Args:
      bias: None.
      interpret: runs the kernel where there is no TPU, slowly. `Attend` describes the others.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import

    assert bias is None
    key_mask = jnp.broadcast_to(True if key_mask is None else key_mask, key.shape[:2])

    def local(query, key, value, key_mask):
        lengths, (heads, size) = (query.shape[1], key.shape[1]), query.shape[2:]
        kind = splash_attention.CausalMask if is_causal else splash_attention.FullMask
        of_query, of_key = (next(b for b in BLOCKS if length % b == 0) for length in lengths)
        kernel = splash_attention.make_splash_mha_single_device(
            splash_attention.MultiHeadMask([kind(lengths)] * heads),
            block_sizes=splash_attention.BlockSizes(
                block_q=of_query,
                block_kv=of_key,
                block_q_dkv=of_query,
                block_kv_dkv=of_key,
                use_fused_bwd_kernel=True,
            ),
            interpret=interpret,
        )
        # Queries read the keys with the same number as theirs.
        numbers = splash_attention.SegmentIds(
            jnp.ones(query.shape[:2], jnp.int32), key_mask.astype(jnp.int32)
        )
        by_head = (x.swapaxes(1, 2) for x in (query * size**-0.5, key, value))
        return jax.vmap(kernel)(*by_head, numbers).swapaxes(1, 2)

    if mesh is not None and mesh.size > 1:
        rows = PartitionSpec(BATCH_AXES, None, "tensor")
        specs = (rows, rows, rows, PartitionSpec(BATCH_AXES))
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return local(query, key, value, key_mask)


def _rows_shared(mesh: Mesh | None) -> int:
    return 1 if mesh is None else batch_devices(mesh)


def _no_cudnn(device: jax.Device, dtype: DTypeLike) -> str:
    """Why a device has no attention of cuDNN; empty if it has."""
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return f"it runs on NVIDIA's GPUs alone, and these devices are {device.device_kind}"
    if float(getattr(device, "compute_capability", 0)) < 8:
        return f"it needs compute capability 8.0, which {device.device_kind} lacks"
    if jnp.dtype(dtype).itemsize != 2:
        return f"it computes in 16 bits, and model.dtype={jnp.dtype(dtype).name}"
    return ""


def _no_splash(device: jax.Device) -> str:
    if device.platform != "tpu":
        return f"it runs on TPUs alone, and these devices are {device.device_kind}"
    return ""


def _no_cudnn_arguments(query: Array, bias: Array | None, mesh: Mesh | None) -> str:
    size = query.shape[-1]
    if size % 8 or size > 128:
        return f"it takes no heads of width {size}"
    if bias is not None and len(bias) > 1 and mesh is not None and mesh.size > 1:
        # JAX does not share them out like the queries.
        return "on several devices it takes no relative positions of shifted windows"
    return ""


def _unavailable(setting: str, reason: str) -> ConfigError:
    return ConfigError(f"model.attention={setting}: {reason}; use auto or xla")
