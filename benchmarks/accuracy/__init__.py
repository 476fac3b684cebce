"""What SAM and its relatives do to the accuracy, and to how sharp a solution is."""
