"""The version of the package, which is recorded in files that it writes."""

VERSION = "0.2.0"
