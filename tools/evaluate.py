"""`segkit evaluate` as a script; all arguments are handed over."""

import sys

from segkit.cli import main

main(["evaluate", *sys.argv[1:]])
