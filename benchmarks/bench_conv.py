"""``perfconv bench conv``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["conv", *sys.argv[1:]]))
