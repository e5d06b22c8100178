"""`segkit predict` as a script; all arguments are handed over."""

import sys

from segkit.cli import main

main(["predict", *sys.argv[1:]])
