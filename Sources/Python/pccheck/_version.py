"""The version of the package, which is that of the library it is released with."""

VERSION = "0.1.0"
