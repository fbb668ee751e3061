"""``perfconv bench bottleneck``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["bottleneck", *sys.argv[1:]]))
