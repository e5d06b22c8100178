"""`segkit inspect` as a script; all arguments are handed over."""

import sys

from segkit.cli import main

main(["inspect", *sys.argv[1:]])
