"""See perfconv/_bench/network.py."""

import sys

from perfconv._bench.network import main

if __name__ == "__main__":
    sys.exit(main())
