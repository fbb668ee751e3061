"""``perfconv bench compaction conv pool bottleneck resnet50 --device cuda``."""

import sys

from perfconv._bench.command import main

if __name__ == "__main__":
    names = ["compaction", "conv", "pool", "bottleneck", "resnet50"]
    sys.exit(main([*names, "--device", "cuda", *sys.argv[1:]]))
