"""The version of s2wrap and of other packages, from the metadata of those that are installed."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed.

    >>> installed_version("no-such-package")
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


__version__ = installed_version("s2wrap") or "unknown"  # torch.hub.load runs it without installing it
