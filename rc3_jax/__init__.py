"""RC³-JAX: multilingual vision-language pre-training (RC³ and CCLM) in JAX and Flax."""

__version__ = "0.1.0"
