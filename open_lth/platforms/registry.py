"""Platforms by name."""

from open_lth.foundations.lazy import LazyRegistry

registered_platforms = LazyRegistry(local='open_lth.platforms.local:Platform')


def get(platform_name):
    if platform_name not in registered_platforms:
        raise ValueError(f'no such platform: {platform_name}')
    return registered_platforms[platform_name]
