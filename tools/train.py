"""`segkit train` as a script; all arguments are handed over."""

import sys

from segkit.cli import main

main(["train", *sys.argv[1:]])
