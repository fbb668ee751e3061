"""``perfconv bench resnet50``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["resnet50", *sys.argv[1:]]))
