"""What was measured: engines (calibrated curves) and operators (the catalog)."""

from halo_core.stats.curve import DecodePoint, EngineCurve, attention_pairs

__all__ = ["DecodePoint", "EngineCurve", "attention_pairs"]
