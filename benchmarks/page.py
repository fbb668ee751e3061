"""See perfconv/_bench/page.py."""

import sys

from perfconv._bench.page import main

if __name__ == "__main__":
    sys.exit(main())
