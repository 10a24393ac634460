"""What the profiles in a package say of its variants. They may hold anything; what is not a sensible number is None."""

from __future__ import annotations

from dnnshifter_ext.package import PackedVariant


def accuracy(variant: PackedVariant) -> float | None:
    """Top-1, as a fraction."""
    return _number(variant.profile.get('accuracy'))


def compression_ratio(variant: PackedVariant) -> float | None:
    """Prunable weights over those that are left."""
    return _number(variant.profile.get('compression_ratio'))


def latency_ms(variant: PackedVariant) -> float | None:
    """Of one image on the CPU where it was profiled: comparable between variants if the profile has such a one."""
    comparable_ms = _number(variant.profile.get('comparable_latency_ms'))
    if comparable_ms:
        return comparable_ms
    latencies = variant.profile.get('latencies')
    for latency in latencies if isinstance(latencies, list) else ():
        if isinstance(latency, dict) and (latency.get('device'), latency.get('batch_size')) == ('cpu', 1):
            return _number(latency.get('p50_ms'))
    return None


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e300 else None
