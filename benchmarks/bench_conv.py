"""See perfconv/_bench/conv.py."""

import sys

from perfconv._bench.conv import main

if __name__ == "__main__":
    sys.exit(main())
