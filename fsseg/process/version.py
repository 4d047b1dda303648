"""The version of fsseg. Here, and not in the package's own file, so that no room imports what stands above it."""

VERSION = "0.1.0"
