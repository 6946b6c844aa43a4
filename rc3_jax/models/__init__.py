"""Towers, fusion and heads: pure Flax linen modules that know nothing of losses or devices."""
