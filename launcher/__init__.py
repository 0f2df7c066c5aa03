"""The command line, the run as a whole, and where its jobs run."""
