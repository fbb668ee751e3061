"""``perfconv bench compaction conv pool --device cuda``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["compaction", "conv", "pool", "--device", "cuda", *sys.argv[1:]]))
