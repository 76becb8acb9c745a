"""Jobs: a composed config becomes a study and runs, alone or as one of a sweep, here or in another process."""
