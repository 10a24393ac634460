"""The platform in force, process-wide. Look it up at the moment of use: tests and jobs replace it."""

_PLATFORM = None


def get_platform():
    """The current platform; the local one, with its default folders, when none has been set."""
    global _PLATFORM
    if _PLATFORM is None:
        from open_lth.platforms import registry
        _PLATFORM = registry.get('local')()
    return _PLATFORM
