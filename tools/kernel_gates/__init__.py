"""What tools/kernels_check.py is made of: compiling, occupancy, instruction rules, the report."""
