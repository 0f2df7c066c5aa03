"""Where jobs run; each back end meets its jobs in a command line, an environment and a run folder."""
