"""One file per kind of command; `segkit.cli` puts them together."""
