"""``perfconv bench parser``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["parser", *sys.argv[1:]]))
