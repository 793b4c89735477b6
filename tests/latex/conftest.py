from run_folders import results, suite_runs, write  # noqa: F401
