"""See perfconv/_bench/cuda.py."""

import sys

from perfconv._bench.cuda import main

if __name__ == "__main__":
    sys.exit(main())
