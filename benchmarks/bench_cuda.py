"""``perfconv bench compaction conv pool bottleneck --device cuda``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    sys.exit(main(["compaction", "conv", "pool", "bottleneck", "--device", "cuda", *sys.argv[1:]]))
