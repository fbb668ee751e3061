"""See perfconv/_bench/regression.py."""

import sys

from perfconv._bench.regression import main

if __name__ == "__main__":
    sys.exit(main())
