"""See perfconv/_bench/report.py."""

import sys

from perfconv._bench.report import main

if __name__ == "__main__":
    sys.exit(main())
