"""See perfconv/_bench/pool.py."""

import sys

from perfconv._bench.pool import main

if __name__ == "__main__":
    sys.exit(main())
