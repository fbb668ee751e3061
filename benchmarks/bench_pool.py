"""``perfconv bench pool``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["pool", *sys.argv[1:]]))
