"""The version of s2wrap, from the metadata of the installed package."""

from importlib.metadata import version

__version__ = version("s2wrap")
