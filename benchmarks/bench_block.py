"""See perfconv/_bench/block.py."""

import sys

from perfconv._bench.block import main

if __name__ == "__main__":
    sys.exit(main())
