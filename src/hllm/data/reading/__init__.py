"""Files of others, read fast and, where one is bad, line by line to name the bad one."""
