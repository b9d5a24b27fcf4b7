"""The version of the package, which files that it writes carry."""

VERSION = "0.2.0"
